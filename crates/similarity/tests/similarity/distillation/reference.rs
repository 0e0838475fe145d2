//! Values and gradients against PyTorch, in f64, from `tests/reference/distillation.safetensors` of the repository,
//! which the script beside it writes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use dsd_similarity::{
    AttentionTransfer, ChannelKd, CrossImageKd, DistKd, Ifvd, MemoryContrast, PairwiseKd, PixelKd, PoolWindow,
    PsdReduction, Result, attention_transfer, channel_kd, class_weighted_pixel_kd, cross_image_kd, dist_kd, fitnet,
    ifvd, memory_contrast, pairwise_kd,
};

use crate::{assert_close, flat, scalar};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/distillation.safetensors");
/// Relative to 1 + |expected|.
const VALUE: f64 = 1e-12;
/// Relative to the greatest gradient of the tensor: sums run in another order.
const GRADIENT: f64 = 1e-11;
const CASES: usize = 98;

/// The inputs of a case by name.
struct Set<'a> {
    name: &'a str,
    file: &'a BTreeMap<String, Tensor>,
}

impl Set<'_> {
    fn get(&self, key: &str) -> &Tensor {
        &self.file[&format!("{}/{key}", self.name)]
    }
}

/// The loss of a case, with the settings that its name stands for.
fn loss(function: &str, settings: &str, student: &Tensor, set: &Set, valid: Option<&Tensor>) -> Result<Tensor> {
    let teacher = set.get("teacher");
    match (function, settings) {
        ("attention_transfer", settings) => {
            let published = AttentionTransfer::published();
            let cfg = match settings {
                "published" => published,
                "resolution" => AttentionTransfer::resolution_normalised(),
                "norm_power_1" => AttentionTransfer { reduction: PsdReduction::Norm, power: 1.0, ..published },
                _ => panic!("no settings {settings}"),
            };
            let layers = [student.clone(), set.get("student.deep").clone()];
            attention_transfer(&layers, &[teacher.clone(), set.get("teacher.deep").clone()], valid, cfg)
        }
        ("fitnet", "plain") => fitnet(student, teacher, valid),
        ("pairwise_kd", settings) => {
            let cfg = match settings {
                "published" => PairwiseKd::published(),
                "cirkd" => PairwiseKd::cirkd_compat(),
                "unpooled" => PairwiseKd::unpooled(),
                "averages" => PairwiseKd { window: PoolWindow::Pixels([2, 3]), average: true },
                "large" => PairwiseKd { window: PoolWindow::Pixels([9, 3]), average: false },
                _ => panic!("no settings {settings}"),
            };
            pairwise_kd(student, teacher, valid, cfg)
        }
        ("channel_kd", "published") => channel_kd(student, teacher, valid, ChannelKd::published()),
        ("channel_kd", "temperature_1") => channel_kd(student, teacher, valid, ChannelKd { temperature: 1.0 }),
        ("class_weighted_pixel_kd", "temperature_2") => {
            let cfg = PixelKd { temperature: 2.0 };
            class_weighted_pixel_kd(student, teacher, valid, &[0.3, 1.0, 1.7, 2.4], cfg)
        }
        ("ifvd", "plain") => ifvd(student, teacher, set.get("labels"), valid, Ifvd { num_classes: 4 }),
        ("dist_kd", "published") => dist_kd(student, teacher, valid, DistKd::published()),
        ("dist_kd", "temperature_2") => {
            dist_kd(student, teacher, valid, DistKd { inter: 0.5, intra: 2.0, temperature: 2.0 })
        }
        ("cross_image_kd", "published") => cross_image_kd(student, teacher, valid, CrossImageKd::published()),
        ("cross_image_kd", "averaged") => {
            cross_image_kd(student, teacher, valid, CrossImageKd { temperature: 0.5, average_pool: 2 })
        }
        ("memory_contrast", "published") => {
            memory_contrast(student, teacher, set.get("memory"), valid, MemoryContrast::published())
        }
        ("memory_contrast", "temperature_2") => {
            let cfg = MemoryContrast { contrast_temperature: 0.3, temperature: 2.0 };
            memory_contrast(student, teacher, set.get("memory"), valid, cfg)
        }
        _ => panic!("no loss for {function}/{settings}"),
    }
}

#[test]
fn values_and_gradients_equal_pytorch() {
    let bytes = std::fs::read(FILE).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["reference"]).unwrap();
    let cases: Vec<&str> = about["cases"].as_array().unwrap().iter().map(|case| case.as_str().unwrap()).collect();
    let file: BTreeMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap().into_iter().collect();
    assert_eq!(cases.len(), CASES);
    for case in cases {
        let parts: Vec<&str> = case.split('/').collect();
        let set = Set { name: parts[2], file: &file };
        let valid = parts.get(3).map(|_| set.get("valid"));
        let student = Var::from_tensor(set.get("student")).unwrap();
        let value = loss(parts[0], parts[1], student.as_tensor(), &set, valid).unwrap();
        assert_close(case, &[scalar(&value)], &flat(&file[&format!("{case}/value")]), VALUE);

        let gradients = value.backward().unwrap();
        let (got, expected) = (flat(gradients.get(&student).expect(case)), flat(&file[&format!("{case}/grad")]));
        let greatest = expected.iter().fold(0f64, |greatest, slope| greatest.max(slope.abs()));
        assert!(greatest > 0.0, "{case}: no gradient");
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let close = (got - expected).abs() <= GRADIENT * greatest;
            assert!(close, "{case}: gradient {index} is {got}, expected {expected} (greatest {greatest})");
        }
    }
    println!("figure N3 distillation_cases {CASES}");
}
