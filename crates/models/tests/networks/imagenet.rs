//! EfficientNet-Lite0 with its published ImageNet weights: two photographs, block by block, against an independent
//! implementation. Skipped where the weights are absent.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use dsd_models::backbone::{Architecture, BackboneConfig, EfficientNetLite0};
use dsd_models::weights::{Part, Scheme, load};
use dsd_models::{EncoderDecoderConfig, Mode, ModelConfig, tensor_builder};
use dsd_ops::{Activation, Conv2dOptions};

/// The number added to variances.
const EPS: f64 = 1e-3;
/// The reference was computed in single precision.
const TOLERANCE: f64 = 1e-4;

fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/weights");
    if folder.join("efficientnet_lite0_imagenet.safetensors").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: {} has no ImageNet weights", folder.display());
    None
}

/// `[1,3,H,W]`, (x − 127) / 128 of red, green and blue in 0–255.
fn photograph(path: &Path) -> Tensor {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    let (height, width) = (info.height as usize, info.width as usize);
    let pixels: Vec<f32> = bytes.iter().map(|&byte| (f32::from(byte) - 127.0) / 128.0).collect();
    let pixels = Tensor::from_vec(pixels, (1, height, width, 3), &Device::Cpu).unwrap();
    pixels.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

fn close(at: &str, got: f64, expected: &serde_json::Value) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= TOLERANCE * (1.0 + expected.abs()), "{at}: {got}, reference {expected}");
}

/// The last convolution, pooling and the classifier, which the backbone has not.
fn logits(feature: &Tensor, package: &dyn Fn(&str) -> Tensor) -> Vec<f32> {
    let wide = dsd_ops::conv2d(feature, &package("_conv_head.weight"), None, Conv2dOptions::default()).unwrap();
    let [weight, bias, mean, var] =
        ["weight", "bias", "running_mean", "running_var"].map(|part| package(&format!("_bn1.{part}")));
    let wide = dsd_ops::batch_norm_eval(&wide, &weight, &bias, &mean, &var, EPS, Activation::Relu6).unwrap();
    let pooled = wide.mean((2, 3)).unwrap();
    let logits = pooled.matmul(&package("_fc.weight").t().unwrap()).unwrap();
    logits.broadcast_add(&package("_fc.bias")).unwrap().i(0).unwrap().to_vec1().unwrap()
}

#[test]
fn published_weights_give_the_published_answers() {
    let Some(folder) = folder() else { return };
    let file = folder.join("efficientnet_lite0_imagenet.safetensors");
    let config = ModelConfig::Fcn(EncoderDecoderConfig {
        backbone: Architecture::EfficientNetLite0,
        output_stride: 32,
        width: 1.0,
        head_channels: 8,
        stem: None,
        aux: false,
        dropout: 0.0,
    });
    let pretrained = load(file.to_str().unwrap(), &config, 19, Part::Backbone).unwrap();
    assert_eq!(pretrained.report.scheme, Scheme::EfficientNetLite);
    let vb = tensor_builder(pretrained.tensors, DType::F32, &Device::Cpu).pp("backbone");
    let network = EfficientNetLite0::new(&BackboneConfig { output_stride: 32, width: 1.0 }, vb).unwrap();
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let package = |name: &str| tensors[name].clone();

    let golden = std::fs::read_to_string(folder.join("golden/forward.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let photographs = golden["images"].as_object().unwrap();
    assert_eq!(photographs.len(), 2);
    for (name, expected) in photographs {
        let image = photograph(&folder.join("golden").join(expected["input"].as_str().unwrap()));
        let outputs = network.block_outputs(&image, Mode::Eval).unwrap();
        let blocks = expected["block_shape_mean_std_v1234"].as_object().unwrap();
        assert_eq!((outputs.len(), blocks.len()), (16, 16));
        for (index, output) in outputs.iter().enumerate() {
            let block = &blocks[&format!("block{index}")];
            let shape: Vec<usize> = serde_json::from_value(block[0].clone()).unwrap();
            assert_eq!(output.dims()[1..], shape, "{name} block {index}");
            let values: Vec<f32> = output.flatten_all().unwrap().to_vec1().unwrap();
            let count = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let var = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
            close(&format!("{name} block {index} mean"), mean, &block[1]);
            close(&format!("{name} block {index} deviation"), var.sqrt(), &block[2]);
            close(&format!("{name} block {index} value 1234"), f64::from(values[1234]), &block[3]);
        }
        let logits = logits(outputs.last().unwrap(), &package);
        assert_eq!(logits.len(), 1000);
        for (index, expected) in expected["logits_first8"].as_array().unwrap().iter().enumerate() {
            close(&format!("{name} logit {index}"), f64::from(logits[index]), expected);
        }
        // A sum of a thousand logits, each within the tolerance.
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit)).sum();
        let expected_sum = expected["logits_sum"].as_f64().unwrap();
        assert!((sum - expected_sum).abs() < 0.02, "{name}: sum {sum}, reference {expected_sum}");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (class, top) in order.iter().zip(expected["top5"].as_array().unwrap()) {
            assert_eq!(Some(*class as u64), top[0].as_u64(), "{name}");
            close(&format!("{name} class {class} probability"), f64::from(logits[*class]).exp() / total, &top[1]);
            close(&format!("{name} class {class} logit"), f64::from(logits[*class]), &top[2]);
        }
    }
}
