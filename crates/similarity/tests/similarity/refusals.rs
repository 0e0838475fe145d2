//! Wrong arguments: each is refused with a line that names it.

use candle_core::{DType, Device, Tensor};
use dsd_similarity::{
    Csd, Dsd, NetworkOutput, PixelKd, Psd, Result, attention_map, category_correlation, csd, dsd, pixel_kd, psd,
    residual_attention,
};

use super::{layers, normal};

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn feature_layers() {
    let good = layers("good", &[[2, 3, 4, 5], [2, 3, 4, 5]]);
    let cfg = Psd::paper_reading();
    let with = |layer: Tensor| [good[0].clone(), layer];
    let single = |layer: &Tensor| layer.to_dtype(DType::F32).unwrap();
    refused(psd(&good[..1], &good, None, cfg), "psd: student is 1, expected at least 2 feature layers");
    refused(psd(&good, &good[..1], None, cfg), "psd: teacher is 1, expected 2 feature layers as student");
    refused(
        psd(&good, &with(normal("batch", &[3, 3, 4, 5], 1.0)), None, cfg),
        "psd: teacher has shape [3, 3, 4, 5], expected [2,C,H,W] with no size 0 for layer 2 of the list",
    );
    refused(
        psd(&with(normal("rank", &[2, 3, 4], 1.0)), &good, None, cfg),
        "psd: student has shape [2, 3, 4], expected [2,C,H,W] with no size 0 for layer 2 of the list",
    );
    refused(psd(&good, &with(single(&good[1])), None, cfg), "psd: teacher is f32, expected f64");
    refused(
        psd(&good, &with(normal("size", &[2, 3, 4, 6], 1.0)), None, Psd::cirkd_compat()),
        "psd: teacher is 4×6, expected features of equal H×W, 4×5 (or map_size Coarsest)",
    );
    refused(
        psd(&good, &good, None, Psd { power: 0.5, ..cfg }),
        "psd: power is 0.5, expected a finite number of at least 1",
    );
    refused(psd(&good, &good, None, Psd { eps: 0.0, ..cfg }), "psd: eps is 0, expected a finite number above 0");
    let f32_layers: Vec<Tensor> = good.iter().map(single).collect();
    refused(
        psd(&f32_layers, &f32_layers, None, Psd { eps: 1e-12, ..cfg }),
        "psd: eps is 0.000000000001, expected at least 1e-8 with f32 tensors",
    );
}

#[test]
fn logits_and_settings() {
    let good = normal("good", &[2, 3, 4, 5], 1.0);
    let other_classes = normal("classes", &[2, 4, 4, 5], 1.0);
    let integers = Tensor::zeros((2, 3, 4, 5), DType::U32, &Device::Cpu).unwrap();
    let cfg = PixelKd { temperature: 1.0 };
    let classes = "teacher has shape [2, 4, 4, 5], expected [2,3,H,W] with no size 0";
    refused(csd(&good, &other_classes, None, Csd::paper_reading()), &format!("csd: {classes}"));
    refused(pixel_kd(&good, &other_classes, None, cfg), &format!("pixel_kd: {classes}"));
    refused(pixel_kd(&integers, &good, None, cfg), "pixel_kd: student is u32, expected f32 or f64");
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = format!("temperature is {temperature}, expected a finite number above 0");
        refused(pixel_kd(&good, &good, None, PixelKd { temperature }), &format!("pixel_kd: {message}"));
        let cfg = Csd { temperature, ..Csd::paper_reading() };
        refused(csd(&good, &good, None, cfg), &format!("csd: {message}"));
        refused(category_correlation(&good, None, cfg), &format!("category_correlation: {message}"));
    }
    let side = NetworkOutput { features: &[], logits: &good };
    let cfg = Dsd { psd_weight: -1.0, ..Dsd::paper_reading() };
    refused(dsd(side, side, None, cfg), "dsd: psd_weight is -1, expected a finite number of at least 0");
    refused(
        attention_map(&normal("rank", &[3, 4], 1.0), 2.0),
        "attention_map: features has shape [3, 4], expected [N,C,H,W] with no size 0",
    );
    refused(
        residual_attention(&normal("a", &[1, 3, 4], 1.0), &normal("b", &[1, 4, 3], 1.0), true, 1e-6),
        "residual_attention: deep has shape [1, 4, 3], expected [1, 3, 4]",
    );
}

#[test]
fn masks() {
    let good = normal("good", &[2, 3, 4, 5], 1.0);
    let cfg = PixelKd { temperature: 1.0 };
    let labels = Tensor::new(&[[[1u8, 255]], [[0, 1]]], &Device::Cpu).unwrap();
    refused(
        pixel_kd(&good, &good, Some(&labels), cfg),
        "pixel_kd: valid is 255, expected 0 (ignored) or 1 (counted) everywhere",
    );
    let one_image = labels.narrow(0, 0, 1).unwrap();
    refused(
        csd(&good, &good, Some(&one_image), Csd::paper_reading()),
        "csd: valid has shape [1, 1, 2], expected [2,H,W] with no size 0",
    );
    let floats = labels.to_dtype(DType::F32).unwrap();
    let layers = [good.clone(), good.clone()];
    refused(psd(&layers, &layers, Some(&floats), Psd::paper_reading()), "psd: valid is f32, expected u8");
}
