//! ESPNet-C, ESPNet and ESPNetv2: published numbers, names, and sizes that the authors' decoders refuse.

use candle_core::{DType, Device, Tensor};
use dsd_models::{
    EspnetConfig, EspnetV2Config, Mode, ModelConfig, ParamStore, build, multiply_adds, parameter_count,
    parameter_shapes,
};

use super::{CLASSES, images, labels, loss, values};

const FULL: EspnetConfig = EspnetConfig { width: 1.0, decoder: true, p: 2, q: 8, image_in_decoder: false };
const ENCODER: EspnetConfig = EspnetConfig { decoder: false, ..FULL };
/// What the authors count: 19 classes and the background.
const CITYSCAPES: usize = 20;

fn count(config: EspnetConfig, classes: usize) -> usize {
    parameter_count(&ModelConfig::Espnet(config), classes).unwrap()
}

/// Counted in the authors' checkpoints: encoder and decoder of Cityscapes with q = 3, 5 and 8, decoder of CamVid.
#[test]
fn parameter_counts_are_those_of_the_published_weights() {
    for (q, encoder, network) in [(3, 187_529, 202_649), (5, 252_297, 267_417), (8, 349_449, 364_569)] {
        assert_eq!(count(EspnetConfig { q, ..ENCODER }, CITYSCAPES), encoder, "q = {q}");
        assert_eq!(count(EspnetConfig { q, ..FULL }, CITYSCAPES), network, "q = {q}");
    }
    assert_eq!(count(EspnetConfig { image_in_decoder: true, ..FULL }, 12), 354_517);
    assert_eq!((count(ENCODER, 19), count(FULL, 19)), (349_193, 362_949));
}

#[test]
fn tensors_have_the_names_and_shapes_of_the_published_weights() {
    let shapes = |config| parameter_shapes(&ModelConfig::Espnet(config), CITYSCAPES).unwrap();
    let (network, encoder) = (shapes(FULL), shapes(ENCODER));
    // As many as the two files have.
    assert_eq!((network.len(), encoder.len()), (189, 154));
    for (name, shape) in &encoder {
        assert_eq!(network.get(&format!("encoder.{name}")), Some(shape), "{name}");
    }
    for (name, shape) in [
        ("encoder.level1.act.weight", vec![16]),
        ("encoder.b2.bn.running_var", vec![131]),
        ("encoder.level2_0.d1.conv.weight", vec![16, 12, 3, 3]),
        ("encoder.level2_0.bn.weight", vec![64]),
        ("encoder.level3.7.d16.conv.weight", vec![25, 25, 3, 3]),
        ("encoder.level3.7.bn.act.weight", vec![128]),
        ("level3_C.conv.weight", vec![20, 131, 1, 1]),
        ("br.running_mean", vec![20]),
        ("combine_l2_l3.0.bn.bias", vec![40]),
        ("combine_l2_l3.1.c1.conv.weight", vec![4, 40, 1, 1]),
        ("up_l2.1.act.weight", vec![20]),
        ("conv.conv.weight", vec![20, 36, 3, 3]),
        ("classifier.weight", vec![20, 20, 2, 2]),
    ] {
        assert_eq!(network.get(name), Some(&shape), "{name}");
    }
}

#[test]
fn sizes_are_halved_rounded_up_and_restored() {
    let levels = [("stage1", 2), ("stage2", 4), ("stage3", 8)];
    for (config, last, stride) in [
        (ENCODER, &[("head", 8), ("logits", 8)][..], 8),
        (FULL, &[("stage4", 4), ("stage5", 2), ("head", 2), ("logits", 1)], 1),
        (
            EspnetConfig { image_in_decoder: true, ..FULL },
            &[("stage4", 4), ("stage5", 2), ("head", 2), ("logits", 1)],
            1,
        ),
    ] {
        let config = ModelConfig::Espnet(EspnetConfig { width: 0.25, q: 2, ..config });
        // Fewer classes than a pyramid has branches, and more.
        for classes in [1, CLASSES, 7] {
            let store = ParamStore::new(1, DType::F32, &Device::Cpu);
            let network = build(&config, classes, store.builder()).unwrap();
            for (count, height, width) in [(1, 24, 40), (1, 1, 1), (2, 17, 23), (1, 18, 33), (1, 31, 42)] {
                let output = network.forward(&images(count, height, width), Mode::Train { seed: 1, step: 1 }).unwrap();
                let got: Vec<_> = output.features.iter().map(|f| (f.name.as_str(), f.stride)).collect();
                assert_eq!(got, [&levels, last].concat(), "{config:?}");
                for feature in &output.features {
                    let (n, _, h, w) = feature.tensor.dims4().unwrap();
                    let expected = (count, height.div_ceil(feature.stride), width.div_ceil(feature.stride));
                    assert_eq!((n, h, w), expected, "{} of {height}x{width}", feature.name);
                    assert!(values(&feature.tensor).iter().all(|v| v.is_finite()), "{}", feature.name);
                }
                let expected = [count, classes, height.div_ceil(stride), width.div_ceil(stride)];
                assert_eq!(output.logits.dims(), expected);
            }
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for config in [ENCODER, FULL, EspnetConfig { image_in_decoder: true, ..FULL }] {
        let config = ModelConfig::Espnet(EspnetConfig { width: 0.25, ..config });
        let store = ParamStore::new(2, DType::F32, &Device::Cpu);
        let network = build(&config, CLASSES, store.builder()).unwrap();
        let output = network.forward(&images(2, 49, 66), Mode::Train { seed: 1, step: 1 }).unwrap();
        let gradients = loss(&output, &labels(2, 49, 66)).backward().unwrap();
        for parameter in store.parameters() {
            let gradient: &Tensor = gradients.get(&parameter.var).unwrap_or_else(|| panic!("{}", parameter.name));
            let largest = values(gradient).iter().fold(0f32, |largest, g| largest.max(g.abs()));
            assert!(largest > 0.0 && largest.is_finite(), "{}: {largest}", parameter.name);
        }
    }
}

#[test]
fn multiply_adds_follow_from_the_table_of_layers() {
    // Positions at strides 1, 2, 4 and 8 of an image of 64×32, and what the layers of the paper cost at each.
    let at = |stride: u64| 64 * 32 / (stride * stride);
    let pyramid = |inner: u64, first: u64| 9 * inner * (first + 4 * inner);
    let encoder = at(2) * 27 * 16
        + at(4) * (9 * 19 * 12 + pyramid(12, 16) + 2 * (64 * 12 + pyramid(12, 16)))
        + at(8) * (9 * 131 * 25 + pyramid(25, 28) + 8 * (128 * 25 + pyramid(25, 28)))
        + at(8) * 256 * 20;
    let decoder = at(8) * 4 * 20 * 20
        + at(4) * (131 * 20 + 40 * 4 + pyramid(4, 4) + 4 * 20 * 20)
        + at(2) * (9 * 36 * 20 + 4 * 20 * 20);
    let counted = |config| multiply_adds(&ModelConfig::Espnet(config), CITYSCAPES, [32, 64]).unwrap();
    assert_eq!(counted(ENCODER), encoder);
    assert_eq!(counted(FULL), encoder + decoder);
}

#[test]
fn settings_out_of_range_are_refused() {
    for (config, field) in [
        (EspnetConfig { width: 0.0, ..FULL }, "width"),
        (EspnetConfig { width: 0.05, ..FULL }, "width"),
        (EspnetConfig { p: 0, ..FULL }, "p"),
        (EspnetConfig { q: 65, ..ENCODER }, "q"),
    ] {
        let message = parameter_count(&ModelConfig::Espnet(config), CITYSCAPES).unwrap_err().to_string();
        assert!(message.contains(&format!("{field} is")), "{message}");
    }
}

#[test]
fn a_configuration_says_only_what_differs() {
    let parsed: ModelConfig = toml::from_str("architecture = \"espnet\"\ndecoder = false\nq = 3").unwrap();
    assert_eq!(parsed, ModelConfig::Espnet(EspnetConfig { q: 3, ..ENCODER }));
    assert!(toml::from_str::<ModelConfig>("architecture = \"espnet\"\nr = 1").is_err());
}

const V2: EspnetV2Config = EspnetV2Config { width: 1.0, dropout: 0.2 };

/// Counted in the authors' code, without the slopes that nothing there uses.
#[test]
fn parameter_counts_of_the_second_version_are_those_of_the_public_code() {
    for (width, classes, parameters) in [(1.0, 20, 340_558), (0.5, 19, 99_110), (1.25, 11, 511_690)] {
        let config = ModelConfig::EspnetV2(EspnetV2Config { width, ..V2 });
        assert_eq!(parameter_count(&config, classes).unwrap(), parameters, "{width}");
    }
}

#[test]
fn tensors_of_the_second_version_have_the_names_and_shapes_of_the_public_code() {
    let shapes = parameter_shapes(&ModelConfig::EspnetV2(V2), CITYSCAPES).unwrap();
    for (name, shape) in [
        ("net.level1.act.weight", vec![32]),
        ("net.level2_0.eesp.proj_1x1.conv.weight", vec![8, 8, 1, 1]),
        ("net.level3_0.inp_reinf.1.bn.running_var", vec![128]),
        ("net.level3.2.spp_dw.3.conv.weight", vec![32, 1, 3, 3]),
        ("net.level4_0.act.weight", vec![256]),
        ("net.level4.6.conv_1x1_exp.conv.weight", vec![256, 64, 1, 1]),
        ("net.level4.6.br_after_cat.act.weight", vec![256]),
        ("proj_L4_C.conv.weight", vec![128, 256, 1, 1]),
        ("pspMod.0.module_act.weight", vec![128]),
        ("pspMod.1.stages.3.conv.weight", vec![128, 1, 3, 3]),
        ("pspMod.1.project.conv.weight", vec![128, 640, 1, 1]),
        ("project_l3.1.conv.weight", vec![20, 128, 1, 1]),
        ("act_l3.bn.weight", vec![20]),
        ("project_l2.conv.weight", vec![20, 84, 1, 1]),
        ("project_l1.1.conv.weight", vec![20, 52, 1, 1]),
    ] {
        assert_eq!(shapes.get(name), Some(&shape), "{name}");
    }
}

#[test]
fn the_second_version_takes_odd_sizes_and_trains_every_parameter() {
    let config = ModelConfig::EspnetV2(EspnetV2Config { width: 0.5, ..V2 });
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let network = build(&config, CLASSES, store.builder()).unwrap();
    let names =
        [("stage1", 2), ("stage2", 4), ("stage3", 8), ("stage4", 16), ("head", 2), ("logits", 2), ("aux_logits", 8)];
    for (height, width) in [(1, 1), (32, 48), (63, 81), (50, 67)] {
        let output = network.forward(&images(2, height, width), Mode::Train { seed: 1, step: 1 }).unwrap();
        let got: Vec<_> = output.features.iter().map(|f| (f.name.as_str(), f.stride)).collect();
        assert_eq!(got, names);
        for feature in &output.features {
            let expected = [height.div_ceil(feature.stride), width.div_ceil(feature.stride)];
            assert_eq!(feature.tensor.dims()[2..], expected, "{} of {height}x{width}", feature.name);
            assert!(values(&feature.tensor).iter().all(|v| v.is_finite()), "{}", feature.name);
        }
        if height == 1 {
            continue;
        }
        let gradients = loss(&output, &labels(2, height, width)).backward().unwrap();
        for parameter in store.parameters() {
            let gradient: &Tensor = gradients.get(&parameter.var).unwrap_or_else(|| panic!("{}", parameter.name));
            let largest = values(gradient).iter().fold(0f32, |largest, g| largest.max(g.abs()));
            assert!(largest > 0.0 && largest.is_finite(), "{}: {largest}", parameter.name);
        }
    }
}

#[test]
fn widths_that_groups_do_not_divide_are_refused() {
    for width in [0.0, 0.01, 0.75, f64::NAN] {
        let config = ModelConfig::EspnetV2(EspnetV2Config { width, ..V2 });
        let message = parameter_count(&config, CITYSCAPES).unwrap_err().to_string();
        assert!(message.contains("width is"), "{message}");
    }
}
