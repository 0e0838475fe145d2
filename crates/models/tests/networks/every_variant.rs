//! Shapes, gradients, modes and determinism of every variant.

use candle_core::{DType, Tensor};
use dsd_models::backbone::Architecture;
use dsd_models::{EncoderDecoderConfig, EnetConfig, EnetForm, EspnetConfig, Mode, ModelConfig, build};

use super::{CLASSES, cases, images, labels, loss, values};

const TRAIN: Mode = Mode::Train { seed: 3, step: 0 };

/// Names and strides of all features.
fn expected_features(config: &ModelConfig) -> Vec<(&'static str, usize)> {
    let Some(&EncoderDecoderConfig { backbone, output_stride, aux, .. }) = config.encoder_decoder() else {
        return match config {
            ModelConfig::Enet(_) => vec![
                ("stage1", 4),
                ("stage2", 8),
                ("stage3", 8),
                ("stage4", 4),
                ("stage5", 2),
                ("head", 2),
                ("logits", 1),
            ],
            ModelConfig::Espnet(EspnetConfig { decoder: false, .. }) => {
                vec![("stage1", 2), ("stage2", 4), ("stage3", 8), ("head", 8), ("logits", 8)]
            }
            ModelConfig::Espnet(_) => {
                vec![
                    ("stage1", 2),
                    ("stage2", 4),
                    ("stage3", 8),
                    ("stage4", 4),
                    ("stage5", 2),
                    ("head", 2),
                    ("logits", 1),
                ]
            }
            ModelConfig::EspnetV2(_) => vec![
                ("stage1", 2),
                ("stage2", 4),
                ("stage3", 8),
                ("stage4", 16),
                ("head", 2),
                ("logits", 2),
                ("aux_logits", 8),
            ],
            other => panic!("no list for {other:?}"),
        };
    };
    let mut features = vec![("stage1", 4), ("stage2", 8)];
    if backbone == Architecture::MobileNetV3Large {
        features.insert(1, ("stage2_first", 8));
    }
    features.extend([("stage3", output_stride.min(16)), ("stage4", output_stride.min(32))]);
    let head = if matches!(config, ModelConfig::Lraspp(_)) { 8 } else { output_stride };
    features.extend([("head", head), ("logits", head)]);
    if aux {
        features.push(("aux_logits", output_stride.min(16)));
    }
    features
}

/// A side of a feature: the image's, halved and rounded up as often as the stride says. The public form of ENet rounds
/// down after the first halving.
fn side(config: &ModelConfig, stride: usize, image: usize) -> usize {
    match config {
        ModelConfig::Enet(EnetConfig { form: EnetForm::PytorchEnet, .. }) if stride > 1 => {
            image.div_ceil(2) / (stride / 2)
        }
        _ => image.div_ceil(stride),
    }
}

#[test]
fn sizes_are_halved_rounded_up_and_features_say_their_stride() {
    for case in cases() {
        let names = expected_features(&case.config);
        let logits_stride = names.iter().find(|(name, _)| *name == "logits").unwrap().1;
        for (count, height, width, mode) in
            [(2, 33, 48, Mode::Eval), (1, 25, 39, Mode::Eval), (2, 31, 22, TRAIN), (1, 32, 17, TRAIN)]
        {
            let output = case.network.forward(&images(count, height, width), mode).unwrap();
            let got: Vec<_> = output.features.iter().map(|f| (f.name.as_str(), f.stride)).collect();
            assert_eq!(got, names, "{}", case.name);
            for feature in &output.features {
                let (n, _, h, w) = feature.tensor.dims4().unwrap();
                let expected =
                    (count, side(&case.config, feature.stride, height), side(&case.config, feature.stride, width));
                assert_eq!((n, h, w), expected, "{} {} of {height}x{width}", case.name, feature.name);
                assert!(values(&feature.tensor).iter().all(|v| v.is_finite()), "{} {}", case.name, feature.name);
            }
            let expected = [count, CLASSES, height.div_ceil(logits_stride), width.div_ceil(logits_stride)];
            assert_eq!(output.logits.dims(), expected, "{}", case.name);
            assert_eq!(output.aux_logits.is_some(), output.feature("aux_logits").is_some());
            assert_eq!(output.feature("logits").unwrap().tensor.id(), output.logits.id());
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient_and_moves() {
    for case in cases() {
        // Three images: one bin per image is then three values, of which normalisation leaves a gradient.
        let output = case.network.forward(&images(3, 49, 66), TRAIN).unwrap();
        let gradients = loss(&output, &labels(3, 49, 66)).backward().unwrap();
        let parameters = case.store.parameters();
        assert!(parameters.len() > 60, "{}: {}", case.name, parameters.len());
        for parameter in parameters {
            let at = format!("{} {}", case.name, parameter.name);
            let gradient = gradients.get(&parameter.var).unwrap_or_else(|| panic!("{at}: no gradient"));
            assert_eq!(gradient.dims(), parameter.var.dims(), "{at}");
            let elements = values(gradient);
            assert!(elements.iter().all(|g| g.is_finite()), "{at}: not finite");
            let largest = elements.iter().fold(0f32, |largest, g| largest.max(g.abs()));
            assert!(largest > 0.0, "{at}: gradient is zero");
            let before = values(&parameter.var);
            // A step of a hundredth along the largest gradient, whatever its size.
            let moved =
                (parameter.var.as_tensor().detach() - (gradient * (0.01 / f64::from(largest))).unwrap()).unwrap();
            parameter.var.set(&moved).unwrap();
            assert_ne!(values(&parameter.var), before, "{at}: did not move");
        }
    }
}

#[test]
fn one_image_can_be_trained_on() {
    for case in cases() {
        let output = case.network.forward(&images(1, 33, 35), TRAIN).unwrap();
        let gradients = loss(&output, &labels(1, 33, 35)).backward().unwrap();
        for parameter in case.store.parameters() {
            if let Some(gradient) = gradients.get(&parameter.var) {
                assert!(values(gradient).iter().all(|g| g.is_finite()), "{} {}", case.name, parameter.name);
            }
        }
        for (name, buffer) in case.store.buffers() {
            assert!(values(&buffer).iter().all(|v| v.is_finite()), "{} {name}", case.name);
        }
    }
}

#[test]
fn a_frozen_twin_gives_the_same_output_and_builds_no_graph() {
    for case in cases() {
        let x = images(2, 33, 40);
        // After a training step, so that running statistics are not the initial ones.
        case.network.forward(&x, TRAIN).unwrap();
        let twin = build(&case.config, CLASSES, case.store.frozen_builder()).unwrap();
        let (own, frozen) = (case.network.forward(&x, Mode::Eval).unwrap(), twin.forward(&x, Mode::Eval).unwrap());
        assert_eq!(values(&own.logits), values(&frozen.logits), "{}", case.name);
        assert!(own.logits.track_op(), "{}", case.name);
        for feature in &frozen.features {
            assert!(!feature.tensor.track_op(), "{} {}", case.name, feature.name);
        }
        let changed = case.store.tensors().into_iter().map(|(name, tensor)| (name, (tensor * 1.01).unwrap())).collect();
        case.store.apply(&changed).unwrap();
        assert_ne!(values(&twin.forward(&x, Mode::Eval).unwrap().logits), values(&frozen.logits), "{}", case.name);
    }
}

#[test]
fn only_training_moves_running_statistics() {
    for case in cases() {
        let statistics = || case.store.buffers().iter().map(|(_, tensor)| values(tensor)).collect::<Vec<_>>();
        let initial = statistics();
        case.network.forward(&images(2, 32, 33), Mode::Eval).unwrap();
        assert_eq!(statistics(), initial, "{}", case.name);
        case.network.forward(&images(2, 32, 33), TRAIN).unwrap();
        let still = statistics().iter().zip(&initial).filter(|(now, before)| now == before).count();
        assert_eq!(still, 0, "{}", case.name);
    }
}

#[test]
fn dropout_is_a_function_of_seed_and_step() {
    for mut case in cases() {
        let random = case.set_dropout(0.3);
        let x = images(2, 32, 40);
        let logits = |seed, step| values(&case.network.forward(&x, Mode::Train { seed, step }).unwrap().logits);
        let first = logits(1, 7);
        assert_eq!(first, logits(1, 7), "{}", case.name);
        assert_eq!(first != logits(1, 8), random, "{}", case.name);
        assert_eq!(first != logits(2, 7), random, "{}", case.name);
    }
}

#[test]
fn initial_weights_are_a_function_of_the_seed() {
    for (case, again) in cases().iter().zip(cases()) {
        for (first, second) in case.store.parameters().iter().zip(again.store.parameters()) {
            assert_eq!(values(&first.var), values(&second.var), "{} {}", case.name, first.name);
        }
    }
}

#[test]
fn images_of_another_shape_or_type_are_refused() {
    for case in cases() {
        let x = images(1, 16, 16);
        for bad in [x.narrow(1, 0, 2).unwrap(), x.get(0).unwrap(), x.to_dtype(DType::U8).unwrap()] {
            let bad: Tensor = bad;
            assert!(case.network.forward(&bad, Mode::Eval).is_err(), "{} {:?}", case.name, bad.dims());
        }
    }
}
