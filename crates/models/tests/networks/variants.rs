//! The table of variants and its published numbers.

use dsd_models::{ModelConfig, parameter_count, parameter_shapes, variant, variants};

/// The classes of Cityscapes, with which the published numbers were counted.
const CITYSCAPES: usize = 19;

#[test]
fn every_variant_has_the_parameters_of_the_table() {
    for variant in variants() {
        assert_eq!(parameter_count(&variant.config, CITYSCAPES).unwrap(), variant.parameters, "{}", variant.name);
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let millions = |name: &str, aux: bool| {
        let config = match variant(name).unwrap() {
            ModelConfig::Pspnet(mut config) => {
                config.aux = aux;
                ModelConfig::Pspnet(config)
            }
            other => other,
        };
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
