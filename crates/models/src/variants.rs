//! Networks by name.

use crate::backbone::{ResNetDepth, Stem};
use crate::enet::EnetConfig;
use crate::{ModelConfig, PspnetConfig};

/// A named network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Its name in recipes and on the command line.
    pub name: &'static str,
    /// What it is for: `teacher`, `student` or both.
    pub role: &'static str,
    /// What its features come from.
    pub backbone: &'static str,
    /// What it is, in a sentence.
    pub description: &'static str,
    /// Trained values with 19 classes (Cityscapes), the auxiliary head included.
    pub parameters: usize,
    /// Where this number can be compared.
    pub parameters_source: &'static str,
    /// Its settings.
    pub config: ModelConfig,
}

/// PSPNet as in the published distillation codes: deep stem, output stride 8, auxiliary head, dropout 0.1.
const fn pspnet(backbone: ResNetDepth, width: f64, head_channels: usize) -> ModelConfig {
    ModelConfig::Pspnet(PspnetConfig {
        backbone,
        output_stride: 8,
        width,
        head_channels,
        stem: Stem::Deep,
        aux: true,
        dropout: 0.1,
    })
}

/// The same layout as the networks with a published number; no publication of this one's number is known.
const LAYOUT: &str = "by the layout of the ResNet-101 and ResNet-18 networks";

static VARIANTS: [Variant; 6] = [
    Variant {
        name: "pspnet_resnet101",
        role: "teacher",
        backbone: "ResNet-101",
        description: "PSPNet, 512 head channels: the teacher of the published distillation results",
        parameters: 70_436_838,
        parameters_source: "published distillation code (SKD, IFVD): 70.44 M, 65.71 M without auxiliary head",
        config: pspnet(ResNetDepth::ResNet101, 1.0, 512),
    },
    Variant {
        name: "pspnet_resnet50",
        role: "teacher",
        backbone: "ResNet-50",
        description: "PSPNet, 512 head channels: a lighter teacher",
        parameters: 51_444_710,
        parameters_source: LAYOUT,
        config: pspnet(ResNetDepth::ResNet50, 1.0, 512),
    },
    Variant {
        name: "pspnet_resnet34",
        role: "teacher or student",
        backbone: "ResNet-34",
        description: "PSPNet, 128 head channels: a teacher for two cores",
        parameters: 23_176_294,
        parameters_source: LAYOUT,
        config: pspnet(ResNetDepth::ResNet34, 1.0, 128),
    },
    Variant {
        name: "pspnet_resnet18",
        role: "student",
        backbone: "ResNet-18",
        description: "PSPNet, 128 head channels: the student of the published distillation results",
        parameters: 13_068_134,
        parameters_source: "published distillation code (SKD, IFVD): 13.07 M, 12.77 M without auxiliary head",
        config: pspnet(ResNetDepth::ResNet18, 1.0, 128),
    },
    Variant {
        name: "pspnet_resnet18_half",
        role: "student",
        backbone: "ResNet-18, half width",
        description: "PSPNet with half the channels everywhere, 64 in the head",
        parameters: 3_271_622,
        parameters_source: LAYOUT,
        config: pspnet(ResNetDepth::ResNet18, 0.5, 64),
    },
    Variant {
        name: "enet",
        role: "student",
        backbone: "its own",
        description: "ENet: an encoder of bottlenecks, a small decoder, logits at input resolution",
        parameters: 365_839,
        parameters_source: "Paszke et al. 2016, table 3: 0.37 M",
        config: ModelConfig::Enet(EnetConfig { width: 1.0, early_dropout: 0.01, dropout: 0.1 }),
    },
];

/// All named networks, teachers first.
#[must_use]
pub fn variants() -> &'static [Variant] {
    &VARIANTS
}

/// The settings of the network of this name.
#[must_use]
pub fn variant(name: &str) -> Option<ModelConfig> {
    VARIANTS.iter().find(|variant| variant.name == name).map(|variant| variant.config)
}
