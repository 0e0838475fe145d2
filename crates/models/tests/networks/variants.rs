//! The table of variants and its published numbers.

use std::collections::BTreeMap;

use dsd_models::backbone::{Architecture, Stem};
use dsd_models::{
    EncoderDecoderConfig, Mode, ModelConfig, VARIANT_SIZE, Variant, multiply_adds, parameter_count, parameter_shapes,
    variant, variants,
};
use serde::Deserialize;

/// The classes of Cityscapes, with which the published numbers were counted.
const CITYSCAPES: usize = 19;

const BACKBONES: [(Architecture, Option<Stem>); 6] = [
    (Architecture::ResNet18, Some(Stem::Deep)),
    (Architecture::ResNet18, Some(Stem::Classic)),
    (Architecture::ResNet50, None),
    (Architecture::EfficientNetLite0, None),
    (Architecture::MobileNetV2, None),
    (Architecture::MobileNetV3Large, None),
];

/// Counted by `tests/reference/counts.py` on other implementations of the same networks.
const COUNTS: &str = include_str!("../reference/counts.json");

#[derive(Deserialize)]
struct Counts {
    networks: BTreeMap<String, Count>,
}

#[derive(Deserialize, Debug, PartialEq)]
struct Count {
    parameters: usize,
    multiply_adds: u64,
}

#[test]
fn every_variant_has_the_counts_of_the_table_and_of_other_implementations() {
    let mut independent: Counts = serde_json::from_str(COUNTS).unwrap();
    for variant in variants() {
        let parameters = parameter_count(&variant.config, CITYSCAPES).unwrap();
        let multiply_adds = multiply_adds(&variant.config, CITYSCAPES, VARIANT_SIZE).unwrap();
        let own = Count { parameters, multiply_adds };
        let Variant { parameters, multiply_adds, .. } = *variant;
        assert_eq!(own, Count { parameters, multiply_adds }, "{}", variant.name);
        assert_eq!(Some(own), independent.networks.remove(variant.name), "{}", variant.name);
        assert!(variant.output_strides.contains(&variant.output_stride()), "{}", variant.name);
    }
    assert!(independent.networks.is_empty(), "{:?}", independent.networks);
}

#[test]
fn a_count_leaves_nothing_behind() {
    let config = super::small(variant("enet").unwrap());
    assert!(multiply_adds(&config, 3, [0, 8]).is_err());
    let case = super::Case::new("enet", config);
    let output = case.network.forward(&super::images(1, 16, 16), Mode::Eval).unwrap();
    assert!(super::values(&output.logits).iter().any(|&value| value != 0.0), "the network still counts");
}

#[test]
fn any_backbone_goes_with_any_decoder() {
    let Some(ModelConfig::Pspnet(settings)) = variant("pspnet_resnet18") else { panic!("no such variant") };
    for (backbone, stem) in BACKBONES {
        for output_stride in [8, 16, 32] {
            let settings = EncoderDecoderConfig { backbone, stem, output_stride, ..settings };
            for decoder in [ModelConfig::Pspnet, ModelConfig::Deeplabv3, ModelConfig::Fcn, ModelConfig::Lraspp] {
                let config = super::small(decoder(settings));
                let case = super::Case::new("", config);
                let output = case.network.forward(&super::images(1, 41, 50), Mode::Eval).unwrap();
                let stride = if matches!(config, ModelConfig::Lraspp(_)) { 8 } else { output_stride };
                let expected = [1, super::CLASSES, 41usize.div_ceil(stride), 50usize.div_ceil(stride)];
                assert_eq!(output.logits.dims(), expected, "{config:?}");
            }
        }
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let millions = |name: &str, aux: bool| {
        let mut config = variant(name).unwrap();
        if let Some(settings) = config.encoder_decoder_mut() {
            settings.aux = aux;
        }
        format!("{:.2}", parameter_count(&config, CITYSCAPES).unwrap() as f64 / 1e6)
    };
    for (name, aux, published) in [
        ("pspnet_resnet101", true, "70.44"),
        ("pspnet_resnet101", false, "65.71"),
        ("pspnet_resnet18", true, "13.07"),
        ("pspnet_resnet18", false, "12.77"),
        ("enet", false, "0.37"),
    ] {
        assert_eq!(millions(name, aux), published, "{name}, auxiliary head: {aux}");
    }
}

#[test]
fn backbone_parameters_have_the_names_and_shapes_of_torchvision() {
    let names = |name: &str| parameter_shapes(&variant(name).unwrap(), CITYSCAPES).unwrap();
    let (basic, bottleneck) = (names("pspnet_resnet18"), names("pspnet_resnet101"));
    for (shapes, name, shape) in [
        (&basic, "backbone.layer1.0.conv2.weight", vec![64, 64, 3, 3]),
        (&basic, "backbone.layer4.1.bn2.running_var", vec![512]),
        (&basic, "backbone.layer4.0.downsample.0.weight", vec![512, 256, 1, 1]),
        (&bottleneck, "backbone.layer3.22.conv3.weight", vec![1024, 256, 1, 1]),
        (&bottleneck, "backbone.layer1.0.downsample.1.bias", vec![256]),
        (&bottleneck, "backbone.conv3.weight", vec![128, 64, 3, 3]),
        (&bottleneck, "decoder.bottleneck.conv.weight", vec![512, 4096, 3, 3]),
    ] {
        assert_eq!(shapes.get(name), Some(&shape), "{name}");
    }
}

#[test]
fn an_unknown_name_has_no_settings() {
    assert!(variant("pspnet").is_none());
}
