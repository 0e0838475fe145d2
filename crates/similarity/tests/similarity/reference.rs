//! Values and gradients against PyTorch, in f64, from `tests/reference/similarity.safetensors` of the repository, which
//! the script beside it writes.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use dsd_similarity::{
    Csd, Dsd, LayerPairs, NetworkOutput, PixelKd, Psd, PsdReduction, Result, SoftmaxAxis, csd, dsd, pixel_kd, psd,
};

use super::{assert_close, flat, scalar};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/similarity.safetensors");
/// Relative to 1 + |expected|.
const VALUE: f64 = 1e-12;
/// Relative to the greatest gradient of the tensor: sums run in another order.
const GRADIENT: f64 = 1e-11;
const CASES: usize = 36;

/// One set of inputs.
struct Set {
    student: Vec<Var>,
    teacher: Vec<Tensor>,
    student_logits: Var,
    teacher_logits: Tensor,
}

impl Set {
    fn read(name: &str, file: &BTreeMap<String, Tensor>) -> Self {
        let get = |key: &str| file.get(&format!("{name}/{key}")).cloned();
        let list = |key: &str| (0..).map_while(|index| get(&format!("{key}.{index}"))).collect::<Vec<_>>();
        Self {
            student: super::variables(&list("student")),
            teacher: list("teacher"),
            student_logits: Var::from_tensor(&get("student.logits").unwrap()).unwrap(),
            teacher_logits: get("teacher.logits").unwrap(),
        }
    }

    fn features(&self) -> Vec<Tensor> {
        super::tensors(&self.student)
    }

    fn logits(&self) -> &Tensor {
        self.student_logits.as_tensor()
    }
}

/// The loss of a case, with the settings that its name stands for.
fn loss(case: &str, set: &Set, valid: Option<&Tensor>) -> Result<Tensor> {
    let (function, settings) = case.split_once('/').unwrap();
    match function {
        "psd" => {
            let paper = Psd::paper_reading();
            let cfg = match settings {
                "paper_reading" | "valid" | "valid_one_image" | "mixed_adjacent" | "mixed_valid" => paper,
                "cirkd_compat" => Psd::cirkd_compat(),
                "mixed_all" => Psd { pairs: LayerPairs::All, ..paper },
                "power_1" => Psd { power: 1.0, ..paper },
                "power_3" => Psd { power: 3.0, ..paper },
                "raw_residual" => Psd { normalise_residual: false, ..paper },
                "resolution_normalised" | "valid_one_image_resolution_normalised" => {
                    Psd { reduction: PsdReduction::ResolutionNormalised, ..paper }
                }
                "squared_sum" => Psd { reduction: PsdReduction::SquaredSum, ..paper },
                "norm" => Psd { reduction: PsdReduction::Norm, ..paper },
                _ => panic!("no settings for {case}"),
            };
            psd(&set.features(), &set.teacher, valid, cfg)
        }
        "csd" => {
            let paper = Csd::paper_reading();
            let cfg = match settings {
                "paper_reading" | "valid" | "valid_one_image" | "mixed" | "mixed_valid" => paper,
                "cirkd_compat" | "valid_cirkd_compat" | "mixed_cirkd_compat" => Csd::cirkd_compat(),
                "temperature_1" => Csd { temperature: 1.0, ..paper },
                "pooled" => Csd { average_pool: true, ..paper },
                "raw_maps" => Csd { normalise_maps: false, ..paper },
                "positions_normalised" => Csd { softmax_axis: SoftmaxAxis::Positions, ..paper },
                _ => panic!("no settings for {case}"),
            };
            csd(set.logits(), &set.teacher_logits, valid, cfg)
        }
        "pixel_kd" => {
            let temperature = match settings {
                "temperature_1" | "valid_one_image" => 1.0,
                "valid" | "mixed" => 2.0,
                "mixed_valid" => 1.0,
                "temperature_4" => 4.0,
                _ => panic!("no settings for {case}"),
            };
            pixel_kd(set.logits(), &set.teacher_logits, valid, PixelKd { temperature })
        }
        "dsd" => {
            let cfg = match settings {
                "paper_reading" | "paper_reading_valid" => Dsd::paper_reading(),
                "cirkd_compat" | "cirkd_compat_valid" => Dsd::cirkd_compat(),
                _ => panic!("no settings for {case}"),
            };
            let features = set.features();
            let student = NetworkOutput { features: &features, logits: set.logits() };
            let teacher = NetworkOutput { features: &set.teacher, logits: &set.teacher_logits };
            Ok(dsd(student, teacher, valid, cfg)?.total)
        }
        _ => panic!("no function for {case}"),
    }
}

fn compare_gradient(name: &str, got: Option<&Tensor>, expected: &Tensor) {
    let (got, expected) = (flat(got.expect(name)), flat(expected));
    let size = expected.iter().fold(0f64, |size, slope| size.max(slope.abs()));
    assert!(size > 0.0, "{name}: a gradient that is zero proves nothing");
    let relative = |slopes: &[f64]| slopes.iter().map(|slope| slope / size).collect::<Vec<_>>();
    assert_close(name, &relative(&got), &relative(&expected), GRADIENT);
}

#[test]
fn every_case_of_the_reference_file_agrees() {
    let bytes = std::fs::read(FILE).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["reference"]).unwrap();
    let cases: Vec<&str> = about["cases"].as_array().unwrap().iter().map(|case| case.as_str().unwrap()).collect();
    let file: BTreeMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap().into_iter().collect();

    let mut gradients_compared = 0;
    for case in &cases {
        let name = if case.contains("mixed") { "mixed" } else { "even" };
        let set = Set::read(name, &file);
        let valid = if case.contains("valid_one_image") {
            Some(&file[&format!("{name}/valid.one_image")])
        } else if case.contains("valid") {
            Some(&file[&format!("{name}/valid.some")])
        } else {
            None
        };
        assert!(valid.is_none_or(|valid| valid.dtype() == DType::U8));
        let value = loss(case, &set, valid).unwrap();
        assert_close(case, &[scalar(&value)], &flat(&file[&format!("{case}/value")]), VALUE);

        let gradients = value.backward().unwrap();
        for (index, variable) in set.student.iter().enumerate() {
            if let Some(expected) = file.get(&format!("{case}/grad.{index}")) {
                compare_gradient(&format!("{case}/grad.{index}"), gradients.get(variable), expected);
                gradients_compared += 1;
            }
        }
        if let Some(expected) = file.get(&format!("{case}/grad.logits")) {
            compare_gradient(&format!("{case}/grad.logits"), gradients.get(&set.student_logits), expected);
            gradients_compared += 1;
        }
    }
    assert_eq!((cases.len(), gradients_compared), (CASES, 11 * 3 + 3 * 4 + 12 + 6 + 4 * 4));
    println!("figure N3 dsd_cases {CASES} with {gradients_compared} gradients");
}
