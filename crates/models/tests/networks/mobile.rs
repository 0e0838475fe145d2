//! The mobile backbones compute in f64 what timm and torchvision compute (features, gradients of all parameters, running
//! statistics), and in f32 what they compute in f64.
//!
//! `tests/reference/mobile.py` made the numbers.

use candle_core::{DType, Device, Tensor};
use dsd_models::backbone::{Architecture, Backbone, BackboneConfig};
use dsd_models::backbone::{EfficientNetLite0, MobileNetV2, MobileNetV3Large};
use dsd_models::{Feature, Mode, ParamStore, Parameter};
use serde::Deserialize;

use super::images;
use super::pytorch::{project, scalar, signed, weights};

const REFERENCE: &str = include_str!("../reference/mobile.json");
/// Of a feature, every so many values are in the reference.
const EVERY: usize = 499;
/// Both sides compute in f64; what is left is the order of sums, amplified by normalisations over few values.
const RELATIVE: f64 = 1e-7;
const ABSOLUTE: f64 = 1e-8;
const TRAIN: Mode = Mode::Train { seed: 0, step: 0 };

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    backbone: Architecture,
    width: f64,
    output_stride: usize,
    eval: Expected,
    train: Expected,
}

#[derive(Deserialize)]
struct Expected {
    features: Vec<ExpectedFeature>,
    gradients: Vec<f64>,
    buffers: Vec<f64>,
}

#[derive(Deserialize)]
struct ExpectedFeature {
    name: String,
    shape: Vec<usize>,
    projection: f64,
    sample: Vec<f64>,
}

fn build(architecture: Architecture, config: BackboneConfig, store: &ParamStore) -> Box<dyn Backbone> {
    let vb = store.builder();
    match architecture {
        Architecture::MobileNetV2 => Box::new(MobileNetV2::new(&config, vb).unwrap()),
        Architecture::MobileNetV3Large => Box::new(MobileNetV3Large::new(&config, vb).unwrap()),
        Architecture::EfficientNetLite0 => Box::new(EfficientNetLite0::new(&config, vb).unwrap()),
        other => panic!("{other:?} is no mobile network"),
    }
}

/// The store's tensors become those of the reference.
fn fill(store: &ParamStore) {
    let filled = store.tensors().iter().map(|(name, tensor)| (name.clone(), weights(name, tensor.dims()))).collect();
    store.apply(&filled).unwrap();
}

/// Σ over the features of a projection.
fn loss(features: &[Feature]) -> Tensor {
    let terms: Vec<Tensor> = features.iter().map(|feature| project(&feature.name, &feature.tensor)).collect();
    Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()
}

fn close(at: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() <= ABSOLUTE + RELATIVE * expected.abs(), "{at}: {got}, reference {expected}");
}

fn check(case: &Case) {
    let config = BackboneConfig { output_stride: case.output_stride, width: case.width };
    let store = ParamStore::new(0, DType::F64, &Device::Cpu);
    let network = build(case.backbone, config, &store);
    fill(&store);
    let images = signed("images", &[3, 3, 45, 58]);
    for (mode, expected) in [(Mode::Eval, &case.eval), (TRAIN, &case.train)] {
        let at = format!("{:?}, width {}, output stride {}, {mode:?}", case.backbone, case.width, case.output_stride);
        let features = network.forward(&images, mode).unwrap();
        assert_eq!(features.len(), expected.features.len(), "{at}");
        for (index, (feature, expected)) in features.iter().zip(&expected.features).enumerate() {
            let at = format!("{at}, {}", feature.name);
            assert_eq!(feature.name, expected.name, "{at}");
            assert_eq!(feature.tensor.dims(), expected.shape, "{at}");
            assert_eq!(feature.tensor.dims()[1], network.out_channels()[index], "{at}");
            assert_eq!(feature.tensor.dims()[2], 45usize.div_ceil(network.strides()[index]), "{at}");
            close(&at, scalar(&project(&feature.name, &feature.tensor)), expected.projection);
            let values = feature.tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let sample: Vec<f64> = values.into_iter().step_by(EVERY).collect();
            assert_eq!(sample.len(), expected.sample.len(), "{at}");
            for (got, expected) in sample.into_iter().zip(&expected.sample) {
                close(&at, got, *expected);
            }
        }
        let gradients = loss(&features).backward().unwrap();
        let parameters = store.parameters();
        assert_eq!(parameters.len(), expected.gradients.len(), "{at}");
        for (parameter, expected) in parameters.iter().zip(&expected.gradients) {
            let gradient = gradients.get(&parameter.var).unwrap();
            let at = format!("{at}: gradient of {}", parameter.name);
            close(&at, scalar(&project(&parameter.name, gradient)), *expected);
        }
        let buffers = store.buffers();
        assert_eq!(buffers.len(), expected.buffers.len(), "{at}");
        for ((name, buffer), expected) in buffers.iter().zip(&expected.buffers) {
            close(&format!("{at}: statistic {name}"), scalar(&project(name, buffer)), *expected);
        }
    }
}

#[test]
fn mobile_backbones_agree_with_timm_and_torchvision() {
    let reference: Reference = serde_json::from_str(REFERENCE).unwrap();
    assert_eq!(reference.cases.len(), 9);
    for case in &reference.cases {
        check(case);
    }
}

/// ‖error‖ over ‖feature‖.
const SINGLE_FEATURE: f64 = 1e-3;
/// ‖error‖ over ‖gradient‖. One value that rounding puts on the other side of a ReLU6's kink moves all gradients below by
/// about a hundredth; torch's single precision does the same with these weights.
const SINGLE_GRADIENT: f64 = 0.05;
/// And over the largest ‖gradient‖: a shift before a normalisation has the gradient 0, of which rounding is left.
const SINGLE_FLOOR: f64 = 1e-5;

#[test]
fn single_precision_agrees_with_double() {
    let norm = |tensor: &Tensor| scalar(&tensor.sqr().unwrap().sum_all().unwrap()).sqrt();
    let x = signed("images", &[2, 3, 45, 58]);
    for architecture in [Architecture::EfficientNetLite0, Architecture::MobileNetV2, Architecture::MobileNetV3Large] {
        let run = |dtype, mode| {
            let store = ParamStore::new(0, dtype, &Device::Cpu);
            let network = build(architecture, BackboneConfig { output_stride: 16, width: 0.5 }, &store);
            fill(&store);
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let features = network.forward(&x.to_dtype(dtype).unwrap(), mode).unwrap();
            let features: Vec<Feature> =
                features.iter().map(|f| Feature::new(&f.name, f.stride, wide(&f.tensor))).collect();
            let gradients = loss(&features).backward().unwrap();
            let gradient = |parameter: Parameter| (parameter.name, wide(gradients.get(&parameter.var).unwrap()));
            let gradients: Vec<(String, Tensor)> = store.parameters().into_iter().map(gradient).collect();
            (features, gradients)
        };
        for mode in [Mode::Eval, TRAIN] {
            let (features, gradients) = run(DType::F32, mode);
            let (exact_features, exact_gradients) = run(DType::F64, mode);
            for (got, exact) in features.iter().zip(&exact_features) {
                let (error, size) = (norm(&(&got.tensor - &exact.tensor).unwrap()), norm(&exact.tensor));
                assert!(error <= SINGLE_FEATURE * size, "{architecture:?} {mode:?} {}: {error} of {size}", got.name);
            }
            let largest = exact_gradients.iter().map(|(_, gradient)| norm(gradient)).fold(0.0, f64::max);
            for ((name, got), (_, exact)) in gradients.iter().zip(&exact_gradients) {
                let (error, size) = (norm(&(got - exact).unwrap()), norm(exact));
                let bound = SINGLE_GRADIENT * size + SINGLE_FLOOR * largest;
                assert!(error <= bound, "{architecture:?} {mode:?} {name}: {error} of {size}");
            }
        }
    }
}

/// Every `step`-th row and column.
fn subsampled(x: &Tensor, step: usize) -> Tensor {
    let pick = |x: &Tensor, axis: usize| {
        let every: Vec<u32> = (0..x.dims()[axis] as u32).step_by(step).collect();
        x.index_select(&Tensor::new(every, &Device::Cpu).unwrap(), axis).unwrap()
    };
    pick(&pick(x, 2), 3)
}

/// Where the padding is even and the first dilated block keeps the old dilation, a network that keeps its resolution
/// computes, at the positions that striding would have left, just what the striding network computes.
#[test]
fn a_dilated_mobilenetv2_agrees_with_the_strided_one_where_both_have_a_position() {
    let store = ParamStore::new(2, DType::F64, &Device::Cpu);
    // At this width all channel counts of the early stages are equal, so that a shortcut too many would show.
    let network =
        |output_stride| build(Architecture::MobileNetV2, BackboneConfig { output_stride, width: 0.125 }, &store);
    let x = images(1, 81, 103).to_dtype(DType::F64).unwrap();
    let reference = network(32).forward(&x, Mode::Eval).unwrap();
    for (output_stride, strides) in [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16])] {
        let dilated = network(output_stride);
        assert_eq!(dilated.strides(), strides);
        for (feature, expected) in dilated.forward(&x, Mode::Eval).unwrap().iter().zip(&reference) {
            let got = subsampled(&feature.tensor, expected.stride / feature.stride);
            let error = (&got - &expected.tensor).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(scalar(&error) <= 1e-10, "{}: {error}", feature.name);
        }
    }
}

#[test]
fn detail_and_auxiliary_features_are_where_the_decoders_look() {
    for (architecture, low_level, aux_stage) in [
        (Architecture::MobileNetV2, "stage2", "stage3"),
        (Architecture::EfficientNetLite0, "stage2", "stage3"),
        (Architecture::MobileNetV3Large, "stage2_first", "stage3"),
    ] {
        for output_stride in [8, 16, 32] {
            let store = ParamStore::new(1, DType::F32, &Device::Cpu);
            let network = build(architecture, BackboneConfig { output_stride, width: 0.25 }, &store);
            let features = network.forward(&images(1, 33, 40), Mode::Eval).unwrap();
            assert_eq!(features[network.low_level()].name, low_level, "{architecture:?}");
            assert_eq!(features[network.aux_stage()].name, aux_stage, "{architecture:?}");
            assert_eq!(network.strides().last(), Some(&output_stride), "{architecture:?}");
        }
    }
}

/// Counted in torchvision's and timm's classifiers without their classifying part.
#[test]
fn parameter_counts_are_the_published_ones() {
    for (architecture, parameters) in [
        // 3 504 872 of `mobilenet_v2` without `features.18` (412 160) and `classifier` (1 281 000).
        (Architecture::MobileNetV2, 1_811_712),
        // 5 483 032 of `mobilenet_v3_large` without `classifier` (2 511 080).
        (Architecture::MobileNetV3Large, 2_971_952),
        // 4 652 008 of `tf_efficientnet_lite0` without `conv_head`, `bn2` (412 160) and `classifier` (1 281 000).
        (Architecture::EfficientNetLite0, 2_958_848),
    ] {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        build(architecture, BackboneConfig { output_stride: 32, width: 1.0 }, &store);
        assert_eq!(store.parameter_count(), parameters, "{architecture:?}");
    }
}

/// torchvision's and timm's rules: a depthwise convolution k×k begins with variance 2 / (C·k²) and 2 / k².
#[test]
fn initial_weights_are_those_of_the_origins() {
    let check = |architecture, name: &str, variance: f64| {
        let store = ParamStore::new(4, DType::F64, &Device::Cpu);
        build(architecture, BackboneConfig { output_stride: 32, width: 1.0 }, &store);
        let values = store.tensors()[name].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let found = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        // Four standard deviations of such a mean of squares.
        let tolerance = 4.0 * variance * (2.0 / values.len() as f64).sqrt();
        assert!((found - variance).abs() <= tolerance, "{architecture:?} {name}: {found}, expected {variance}");
    };
    check(Architecture::MobileNetV2, "features.2.conv.1.0.weight", 2.0 / (96.0 * 9.0));
    check(Architecture::MobileNetV2, "features.2.conv.2.weight", 2.0 / 24.0);
    check(Architecture::EfficientNetLite0, "blocks.2.0.conv_dw.weight", 2.0 / 25.0);
    check(Architecture::EfficientNetLite0, "blocks.2.0.conv_pwl.weight", 2.0 / 40.0);
    check(Architecture::MobileNetV3Large, "features.4.block.2.fc1.weight", 2.0 / 24.0);
    check(Architecture::MobileNetV3Large, "features.4.block.2.fc1.bias", 0.0);
}

#[test]
fn settings_out_of_range_are_refused() {
    for (output_stride, width) in [(4, 1.0), (64, 1.0), (16, 0.0), (16, f64::NAN)] {
        let config = BackboneConfig { output_stride, width };
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).builder();
        assert!(MobileNetV2::new(&config, vb()).is_err(), "{config:?}");
        assert!(MobileNetV3Large::new(&config, vb()).is_err(), "{config:?}");
        assert!(EfficientNetLite0::new(&config, vb()).is_err(), "{config:?}");
    }
}
