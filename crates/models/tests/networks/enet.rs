//! ENet in the form of the public weights.

use candle_core::{DType, Device, Tensor};
use dsd_models::{EnetConfig, EnetForm, Mode, ModelConfig, ParamStore, build, parameter_count, parameter_shapes};

use super::{CLASSES, images, labels, loss, values};

const PUBLIC: EnetConfig = EnetConfig { width: 1.0, early_dropout: 0.01, dropout: 0.1, form: EnetForm::PytorchEnet };

/// Counted in PyTorch-ENet itself.
#[test]
fn the_public_form_has_the_parameters_of_the_public_code() {
    for (classes, parameters) in [(11, 350_508), (12, 350_652), (19, 351_660), (20, 351_804)] {
        assert_eq!(parameter_count(&ModelConfig::Enet(PUBLIC), classes).unwrap(), parameters);
    }
    let paper = EnetConfig { form: EnetForm::Paper, ..PUBLIC };
    assert_eq!(parameter_count(&ModelConfig::Enet(paper), 19).unwrap(), 365_839);
}

#[test]
fn the_public_form_has_the_names_and_shapes_of_the_public_code() {
    let shapes = parameter_shapes(&ModelConfig::Enet(PUBLIC), 12).unwrap();
    for (name, shape) in [
        ("initial_block.main_branch.weight", vec![13, 3, 3, 3]),
        ("initial_block.batch_norm.running_mean", vec![16]),
        ("initial_block.out_activation.weight", vec![1]),
        ("downsample1_0.ext_conv1.0.weight", vec![4, 16, 2, 2]),
        ("downsample2_0.ext_conv3.2.weight", vec![1]),
        ("asymmetric2_3.ext_conv2.0.weight", vec![32, 32, 5, 1]),
        ("asymmetric3_6.ext_conv2.3.weight", vec![32, 32, 1, 5]),
        ("asymmetric3_6.ext_conv2.5.weight", vec![1]),
        ("dilated3_7.ext_conv3.1.running_var", vec![128]),
        ("upsample4_0.main_conv1.0.weight", vec![64, 128, 1, 1]),
        ("upsample4_0.ext_tconv1.weight", vec![32, 32, 2, 2]),
        ("upsample5_0.ext_tconv1_bnorm.weight", vec![16]),
        ("upsample5_0.ext_conv2.1.bias", vec![16]),
        ("regular5_1.ext_conv1.0.weight", vec![4, 16, 1, 1]),
        ("transposed_conv.weight", vec![16, 12, 3, 3]),
    ] {
        assert_eq!(shapes.get(name), Some(&shape), "{name}");
    }
    // The decoder has no slopes.
    assert!(!shapes.contains_key("regular5_1.out_activation.weight"));
}

#[test]
fn the_public_form_takes_odd_sizes_and_trains_every_parameter() {
    let config = ModelConfig::Enet(EnetConfig { width: 0.5, ..PUBLIC });
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let network = build(&config, CLASSES, store.builder()).unwrap();
    for (height, width) in [(32, 40), (49, 66), (43, 61)] {
        let output = network.forward(&images(2, height, width), Mode::Train { seed: 1, step: 1 }).unwrap();
        assert_eq!(output.logits.dims(), [2, CLASSES, height, width]);
        // Rounded up by the first halving, rounded down by the others.
        let size = |stride: usize| [height.div_ceil(2) / (stride / 2), width.div_ceil(2) / (stride / 2)];
        for feature in output.features.iter().filter(|feature| feature.stride > 1) {
            assert_eq!(feature.tensor.dims()[2..], size(feature.stride), "{}", feature.name);
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
fn the_form_is_named_in_a_configuration() {
    let parsed: ModelConfig = toml::from_str("architecture = \"enet\"\nform = \"pytorch-enet\"").unwrap();
    assert_eq!(parsed, ModelConfig::Enet(PUBLIC));
    let paper: ModelConfig = toml::from_str("architecture = \"enet\"").unwrap();
    assert_eq!(paper, ModelConfig::Enet(EnetConfig::default()));
}
