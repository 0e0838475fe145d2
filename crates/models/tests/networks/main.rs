//! What every network has to do, checked for each named variant at a small width.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod enet;
mod equality;
mod espnet;
mod every_variant;
mod imagenet;
mod learning;
mod mobile;
mod pytorch;
mod recompute;
mod resnet;
mod saved;
mod variants;
mod weights;

use candle_core::{DType, Device, Tensor};
use dsd_models::{ModelConfig, Output, ParamStore, Segmenter, build, variant, variants};
use dsd_ops::CrossEntropyOptions;
use dsd_random::Stream;

pub(crate) const CLASSES: usize = 3;
const VARIANTS: usize = 16;

/// A network with few channels, and otherwise as it is.
pub(crate) fn small(mut config: ModelConfig) -> ModelConfig {
    if let Some(settings) = config.encoder_decoder_mut() {
        settings.width /= 8.0;
        settings.head_channels = 8;
    }
    match config {
        ModelConfig::Enet(mut settings) => {
            settings.width = 0.5;
            ModelConfig::Enet(settings)
        }
        ModelConfig::Espnet(mut settings) => {
            (settings.width, settings.q) = (0.25, 2);
            ModelConfig::Espnet(settings)
        }
        ModelConfig::EspnetV2(mut settings) => {
            settings.width = 0.5;
            ModelConfig::EspnetV2(settings)
        }
        other => other,
    }
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) config: ModelConfig,
    pub(crate) store: ParamStore,
    pub(crate) network: Box<dyn Segmenter>,
}

impl Case {
    /// The network of these settings, initialised from seed 5.
    pub(crate) fn new(name: &'static str, config: ModelConfig) -> Self {
        let store = ParamStore::new(5, DType::F32, &Device::Cpu);
        let network = build(&config, CLASSES, store.builder()).unwrap();
        Self { name, config, store, network }
    }

    /// The same parameters with other settings of dropout; false where the network has none.
    pub(crate) fn set_dropout(&mut self, dropout: f64) -> bool {
        match &mut self.config {
            ModelConfig::Enet(settings) => (settings.dropout, settings.early_dropout) = (dropout, dropout),
            ModelConfig::EspnetV2(settings) => settings.dropout = dropout,
            config => match config.encoder_decoder_mut() {
                Some(settings) => settings.dropout = dropout,
                None => return false,
            },
        }
        self.network = build(&self.config, CLASSES, self.store.builder()).unwrap();
        true
    }
}

/// Every variant, small, and the decoder that no variant has.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> =
        variants().iter().map(|variant| Case::new(variant.name, small(variant.config))).collect();
    assert_eq!(cases.len(), VARIANTS);
    let Some(ModelConfig::Pspnet(settings)) = variant("pspnet_resnet18") else { panic!("no such variant") };
    cases.push(Case::new("fcn on ResNet-18", small(ModelConfig::Fcn(settings))));
    cases
}

/// Images of unit variance.
pub(crate) fn images(count: usize, height: usize, width: usize) -> Tensor {
    let mut stream = Stream::new(1, "test images", 0, 0);
    let elements: Vec<f32> = (0..count * 3 * height * width).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(elements, (count, 3, height, width), &Device::Cpu).unwrap()
}

/// One blob of each class on a background of class 0, and a row of ignored pixels.
pub(crate) fn labels(count: usize, height: usize, width: usize) -> Tensor {
    let mut stream = Stream::new(2, "test labels", 0, 0);
    let mut ids = vec![0u8; count * height * width];
    for plane in ids.chunks_mut(height * width) {
        for class in 1..CLASSES as u8 {
            let (top, left) = (stream.below(height / 2), stream.below(width / 2));
            for row in top..top + height / 2 {
                plane[row * width + left..][..width / 2].fill(class);
            }
        }
        plane[..width].fill(255);
    }
    Tensor::from_vec(ids, (count, height, width), &Device::Cpu).unwrap()
}

/// Cross-entropy at label size, and 0.4 of the auxiliary one.
pub(crate) fn loss(output: &Output, labels: &Tensor) -> Tensor {
    let (_, height, width) = labels.dims3().unwrap();
    let term = |logits: &Tensor| {
        let full = dsd_ops::resize_bilinear(logits, [height, width], true).unwrap();
        let options = CrossEntropyOptions { ignore_label: 255, class_weights: None };
        dsd_ops::cross_entropy(&full, labels, options).unwrap()
    };
    match &output.aux_logits {
        Some(aux) => (term(&output.logits) + (term(aux) * 0.4).unwrap()).unwrap(),
        None => term(&output.logits),
    }
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
