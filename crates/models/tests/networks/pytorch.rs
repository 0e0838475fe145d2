//! The networks compute what PyTorch computes: logits, gradients of all parameters, running statistics, in f64.
//!
//! `tests/reference/networks.py` made the numbers, with networks written from the papers in torch's own layers, and
//! `decoders.py` those of torchvision's decoders on the same backbone.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use dsd_models::backbone::{Architecture, Stem};
use dsd_models::{EncoderDecoderConfig, EnetConfig, EnetForm, Mode, ModelConfig, Output, ParamStore, build};
use dsd_random::name_hash;
use serde::Deserialize;

use super::CLASSES;

const REFERENCE: &str = include_str!("../reference/networks.json");
const DECODERS: &str = include_str!("../reference/decoders.json");
/// Both sides compute in f64; what is left is the order of sums, amplified by normalisations over few values.
const RELATIVE: f64 = 1e-7;
const ABSOLUTE: f64 = 1e-8;

#[derive(Deserialize)]
struct Reference {
    cases: BTreeMap<String, BTreeMap<String, Expected>>,
}

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    logits: Vec<f64>,
    aux_logits: Vec<f64>,
    loss: f64,
    gradients: BTreeMap<String, f64>,
    buffers: BTreeMap<String, f64>,
}

/// Numbers in [-1, 1) that belong to a name: SplitMix64 from the hash of the name.
pub(super) fn signed(name: &str, shape: &[usize]) -> Tensor {
    let key = name_hash(name);
    let number = |index: usize| {
        let mut z = key.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        2.0 * ((z >> 11) as f64 / (1u64 << 53) as f64) - 1.0
    };
    let elements: Vec<f64> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_vec(elements, shape, &Device::Cpu).unwrap()
}

pub(super) fn weights(name: &str, shape: &[usize]) -> Tensor {
    let value = signed(name, shape);
    if shape.len() >= 2 {
        let fan: usize = shape[1..].iter().product();
        (value * (6.0 / fan as f64).sqrt()).unwrap()
    } else if name.ends_with("bias") || name.ends_with("running_mean") {
        value
    } else {
        ((value * 0.5).unwrap() + 1.0).unwrap()
    }
}

pub(super) fn project(name: &str, tensor: &Tensor) -> Tensor {
    (tensor * signed(&format!("cotangent of {name}"), tensor.dims())).unwrap().sum_all().unwrap()
}

pub(super) fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_scalar().unwrap()
}

fn every_37th(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap().into_iter().step_by(37).collect()
}

fn close(at: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() <= ABSOLUTE + RELATIVE * expected.abs(), "{at}: {got}, PyTorch {expected}");
}

fn all_close<'a>(at: &str, got: impl IntoIterator<Item = (&'a str, f64)>, expected: &BTreeMap<String, f64>) {
    let got: BTreeMap<&str, f64> = got.into_iter().collect();
    assert_eq!(got.keys().copied().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{at}");
    for (name, expected) in expected {
        close(&format!("{at} {name}"), got[name.as_str()], *expected);
    }
}

fn check(config: ModelConfig, reference: &BTreeMap<String, Expected>, name: &str) {
    let store = ParamStore::new(0, DType::F64, &Device::Cpu);
    let network = build(&config, CLASSES, store.builder()).unwrap();
    let filled = store.tensors().iter().map(|(name, tensor)| (name.clone(), weights(name, tensor.dims()))).collect();
    store.apply(&filled).unwrap();
    let images = signed("images", &[3, 3, 45, 58]);
    for (mode_name, mode) in [("eval", Mode::Eval), ("train", Mode::Train { seed: 0, step: 0 })] {
        let at = format!("{name} {mode_name}");
        let expected = &reference[mode_name];
        let Output { logits, aux_logits, .. } = network.forward(&images, mode).unwrap();
        assert_eq!(logits.dims(), expected.shape, "{at}");
        let mut loss = project("logits", &logits);
        for (got, expected) in every_37th(&logits).iter().zip(&expected.logits) {
            close(&format!("{at} logits"), *got, *expected);
        }
        if let Some(aux) = &aux_logits {
            loss = (loss + project("aux_logits", aux)).unwrap();
            for (got, expected) in every_37th(aux).iter().zip(&expected.aux_logits) {
                close(&format!("{at} auxiliary logits"), *got, *expected);
            }
        }
        assert_eq!(aux_logits.is_none(), expected.aux_logits.is_empty(), "{at}");
        close(&format!("{at} loss"), scalar(&loss), expected.loss);
        let gradients = loss.backward().unwrap();
        let parameters = store.parameters();
        let projected = parameters.iter().map(|parameter| {
            let gradient = gradients.get(&parameter.var).unwrap();
            (parameter.name.as_str(), scalar(&project(&parameter.name, gradient)))
        });
        all_close(&format!("{at}: gradient of"), projected, &expected.gradients);
        let buffers = store.buffers();
        let projected = buffers.iter().map(|(name, tensor)| (name.as_str(), scalar(&project(name, tensor))));
        all_close(&format!("{at}: statistic"), projected, &expected.buffers);
    }
}

#[test]
fn networks_agree_with_pytorch() {
    let reference: Reference = serde_json::from_str(REFERENCE).unwrap();
    let pspnet = |backbone, stem| {
        ModelConfig::Pspnet(EncoderDecoderConfig {
            backbone,
            output_stride: 8,
            width: 0.0625,
            head_channels: 5,
            stem: Some(stem),
            aux: true,
            dropout: 0.0,
        })
    };
    let cases = [
        (
            "enet",
            ModelConfig::Enet(EnetConfig { width: 0.25, early_dropout: 0.0, dropout: 0.0, form: EnetForm::Paper }),
        ),
        ("pspnet_resnet18", pspnet(Architecture::ResNet18, Stem::Deep)),
        ("pspnet_resnet50_classic", pspnet(Architecture::ResNet50, Stem::Classic)),
    ];
    assert_eq!(reference.cases.len(), cases.len());
    for (name, config) in cases {
        check(config, &reference.cases[name], name);
    }
}

#[test]
fn decoders_agree_with_torchvision() {
    let reference: Reference = serde_json::from_str(DECODERS).unwrap();
    let settings = EncoderDecoderConfig {
        backbone: Architecture::ResNet18,
        output_stride: 8,
        width: 0.0625,
        head_channels: 5,
        stem: Some(Stem::Classic),
        aux: false,
        dropout: 0.0,
    };
    let cases = [
        ("deeplabv3_resnet18", ModelConfig::Deeplabv3(EncoderDecoderConfig { aux: true, ..settings })),
        ("fcn_resnet18", ModelConfig::Fcn(EncoderDecoderConfig { head_channels: 8, ..settings })),
        ("lraspp_resnet18", ModelConfig::Lraspp(settings)),
    ];
    assert_eq!(reference.cases.len(), cases.len());
    for (name, config) in cases {
        check(config, &reference.cases[name], name);
    }
}
