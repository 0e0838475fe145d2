//! Values and gradients against PyTorch, in f64, from `tests/reference/task.safetensors` of the repository, which the
//! script beside it writes.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use dsd_similarity::{
    ClassSet, Deviation, Dice, EntropyMean, Focal, Keep, LovaszSoftmax, Mining, Ohem, Padding, Probability, Result,
    Scope, Ssl, cross_entropy, dice, focal, lovasz_softmax, ohem_cross_entropy, ssl, ssl_distillation,
};
use serde_json::Value;

use super::super::{assert_close, flat, scalar};
use super::{IGNORED, pixels};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/task.safetensors");
/// Relative to 1 + |expected|.
const VALUE: f64 = 1e-12;
/// Relative to the greatest gradient of the case.
const GRADIENT: f64 = 1e-10;
/// What f32 may add to both.
const SINGLE: f64 = 2e-5;
const CASES: usize = 80;

fn number(settings: &Value, key: &str, otherwise: f64) -> f64 {
    settings.get(key).map_or(otherwise, |value| value.as_f64().unwrap())
}

fn word<'a>(settings: &'a Value, key: &str, otherwise: &'a str) -> &'a str {
    settings.get(key).map_or(otherwise, |value| value.as_str().unwrap())
}

fn class_set(settings: &Value) -> ClassSet {
    if word(settings, "classes", "present") == "all" { ClassSet::All } else { ClassSet::Present }
}

fn scope(settings: &Value) -> Scope {
    if word(settings, "scope", "batch") == "image" { Scope::Image } else { Scope::Batch }
}

fn structural(settings: &Value) -> Ssl {
    let base = Ssl::paper_reading();
    let level = number(settings, "level", 0.1);
    Ssl {
        probability: match word(settings, "probability", "sigmoid") {
            "softmax" => Probability::Softmax,
            _ => Probability::Sigmoid,
        },
        window: number(settings, "window_size", 3.0) as usize,
        window_std: number(settings, "window_std", base.window_std),
        deviation: match word(settings, "deviation", "window") {
            "window" => Deviation::Window,
            "whole_map" => Deviation::WholeMap,
            "window_of_deviations" => Deviation::WindowOfDeviations,
            other => panic!("no deviation {other}"),
        },
        padding: match word(settings, "padding", "replicate") {
            "replicate" => Padding::Replicate,
            "zero" => Padding::Zero,
            "valid" => Padding::Valid,
            other => panic!("no padding {other}"),
        },
        stabiliser: number(settings, "stabiliser", base.stabiliser),
        variance_floor: number(settings, "variance_floor", base.variance_floor),
        mining: match word(settings, "mining", "batch") {
            "batch" => Mining::Batch { share: level },
            "map" => Mining::Map { share: level },
            "bound" => Mining::Bound { share: level },
            "absolute" => Mining::Absolute { error: level },
            other => panic!("no mining {other}"),
        },
        differentiate_error: settings.get("differentiate_error").is_none_or(|value| value.as_bool().unwrap()),
        entropy_mean: match word(settings, "entropy_mean", "pixels") {
            "elements" => EntropyMean::Elements,
            _ => EntropyMean::Pixels,
        },
        lambda: number(settings, "lam", base.lambda),
    }
}

fn loss(function: &str, settings: &Value, logits: &Tensor, of: impl Fn(&str) -> Tensor) -> Result<Tensor> {
    let ids = of("labels");
    let weights: Option<Vec<f64>> = settings
        .get("class_weights")
        .map(|weights| weights.as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect());
    let pixels = pixels(weights.as_deref());
    match function {
        "cross_entropy" => cross_entropy(logits, &ids, pixels),
        "ohem" => {
            let minimum = match settings.get("share") {
                Some(share) => Keep::Share(share.as_f64().unwrap()),
                None => Keep::Pixels(number(settings, "pixels", 0.0) as usize),
            };
            ohem_cross_entropy(logits, &ids, pixels, Ohem { threshold: number(settings, "threshold", 0.0), minimum })
        }
        "focal" => focal(logits, &ids, pixels, Focal { gamma: number(settings, "gamma", 0.0) }),
        "dice" => {
            let squared = settings.get("squared").is_some_and(|value| value.as_bool().unwrap());
            let smoothing = number(settings, "smoothing", 0.0);
            let cfg = Dice { smoothing, squared, classes: class_set(settings), scope: scope(settings) };
            dice(logits, &ids, IGNORED, cfg)
        }
        "lovasz" => {
            let cfg = LovaszSoftmax { classes: class_set(settings), scope: scope(settings) };
            lovasz_softmax(logits, &ids, IGNORED, cfg)
        }
        "ssl" => ssl(logits, &ids, IGNORED, structural(settings)),
        "ssl_distillation" => {
            let teacher = of("teacher").to_dtype(logits.dtype())?;
            ssl_distillation(logits, &teacher, Some(&of("valid")), structural(settings))
        }
        other => panic!("no function {other}"),
    }
}

#[test]
fn every_case_of_the_reference_file_agrees_in_f64_and_f32() {
    let bytes = std::fs::read(FILE).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["reference"]).unwrap();
    let file: BTreeMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap().into_iter().collect();
    let cases = about["cases"].as_array().unwrap();
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let (name, set) = (text("name"), text("set"));
        let of = |key: &str| file[&format!("{set}/{key}")].clone();
        let expected = flat(&file[&format!("{name}/grad")]);
        let size = expected.iter().fold(0f64, |size, slope| size.max(slope.abs()));
        assert!(size > 0.0, "{name}: a gradient that is zero proves nothing");
        for (dtype, extra) in [(DType::F64, 0.0), (DType::F32, SINGLE)] {
            let logits = Var::from_tensor(&of("logits").to_dtype(dtype).unwrap()).unwrap();
            let value = loss(text("function"), &case["settings"], logits.as_tensor(), of).unwrap();
            assert_eq!(value.dtype(), dtype, "{name}");
            let what = format!("{name}, {dtype:?}");
            assert_close(&what, &[scalar(&value)], &flat(&file[&format!("{name}/value")]), VALUE + extra);
            let gradient = flat(value.backward().unwrap().get(&logits).unwrap());
            let relative = |slopes: &[f64]| slopes.iter().map(|slope| slope / size).collect::<Vec<_>>();
            assert_close(&what, &relative(&gradient), &relative(&expected), GRADIENT + extra);
        }
    }
    assert_eq!(cases.len(), CASES);
    println!("figure N3 task_loss_cases {CASES} in f64 and f32");
}
