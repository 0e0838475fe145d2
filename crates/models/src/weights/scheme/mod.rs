//! Schemes of names: how the tensors of the same network are called elsewhere, and what else is different there.

mod distillation;
mod mobile;
mod torchvision;

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::weights::checkpoint::Checkpoint;
use crate::{Normalisation, Result};

/// Whose names the tensors of a source have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// Ours, as [`crate::save`] writes them; those of the public ESPNet and PyTorch-ENet are the same.
    Own,
    /// Image classifiers: ResNets of torchvision and timm, with the deep stem those of published segmentation codes,
    /// and torchvision's MobileNets; the encoder of a network of segmentation_models.pytorch.
    Torchvision,
    /// torchvision's DeepLabV3.
    TorchvisionDeepLabV3,
    /// torchvision's FCN.
    TorchvisionFcn,
    /// torchvision's LR-ASPP.
    TorchvisionLrAspp,
    /// timm's EfficientNet-Lite.
    TimmEfficientNet,
    /// timm's MobileNetV2.
    TimmMobileNetV2,
    /// timm's MobileNetV3-Large.
    TimmMobileNetV3,
    /// The Python package `efficientnet_lite_pytorch`.
    EfficientNetLite,
    /// PSPNet in the published code of SKD and IFVD.
    SkdPspnet,
    /// PSPNet in the published code of CIRKD.
    CirkdPspnet,
}

/// Where a tensor of a source belongs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A tensor of this name, if the network has it.
    Ours(String),
    /// Not a tensor of ours, but used to compute the one of this name.
    PartOf(String),
    /// A part that none of our networks has.
    Elsewhere,
    /// A counter of batches.
    Counter,
    /// Nowhere.
    Unknown,
}

/// The scheme under which most tensors have a name of the network and, where that is the same, most names have a
/// meaning; none where no tensor fits.
pub(crate) fn recognise(checkpoint: &Checkpoint, network: &BTreeMap<String, Vec<usize>>) -> Option<Scheme> {
    let mut best: Option<(Scheme, (usize, usize))> = None;
    for scheme in Scheme::ALL {
        let (mut fitting, mut known) = (0, 0);
        for (name, _) in checkpoint.tensors() {
            match scheme.place(name) {
                Place::Ours(ours) if network.contains_key(&ours) => {
                    fitting += 1;
                    known += 1;
                }
                // Our own scheme has a place for any name at all.
                Place::Ours(_) => known += usize::from(scheme != Scheme::Own),
                Place::PartOf(_) | Place::Elsewhere => known += 1,
                Place::Counter | Place::Unknown => {}
            }
        }
        if fitting > 0 && best.is_none_or(|(_, score)| (fitting, known) > score) {
            best = Some((scheme, (fitting, known)));
        }
    }
    best.map(|(scheme, _)| scheme)
}

/// ImageNet's mean and deviation as torchvision and timm state them.
const IMAGENET: Normalisation = Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
/// (x − 127) / 128 for x in 0–255: EfficientNet-Lite as published for TensorFlow.
const LITE: Normalisation = Normalisation { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] };
/// timm's settings of `tf_efficientnet_lite0`.
const HALF: Normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
/// x in 0–255 minus Caffe's mean of ImageNet, here in the order R, G, B.
const CAFFE: Normalisation = Normalisation {
    mean: [
        (122.678_914_34_f64 / 255.0) as f32,
        (116.668_767_62_f64 / 255.0) as f32,
        (104.006_987_93_f64 / 255.0) as f32,
    ],
    std: [1.0 / 255.0; 3],
};

impl Scheme {
    pub(crate) const ALL: [Self; 11] = [
        Self::Own,
        Self::Torchvision,
        Self::TorchvisionDeepLabV3,
        Self::TorchvisionFcn,
        Self::TorchvisionLrAspp,
        Self::TimmEfficientNet,
        Self::TimmMobileNetV2,
        Self::TimmMobileNetV3,
        Self::EfficientNetLite,
        Self::SkdPspnet,
        Self::CirkdPspnet,
    ];

    /// What to call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "this program",
            Self::Torchvision => "torchvision's classifiers",
            Self::TorchvisionDeepLabV3 => "torchvision's DeepLabV3",
            Self::TorchvisionFcn => "torchvision's FCN",
            Self::TorchvisionLrAspp => "torchvision's LR-ASPP",
            Self::TimmEfficientNet => "timm's EfficientNet-Lite",
            Self::TimmMobileNetV2 => "timm's MobileNetV2",
            Self::TimmMobileNetV3 => "timm's MobileNetV3",
            Self::EfficientNetLite => "the EfficientNet-Lite package",
            Self::SkdPspnet => "the PSPNet of SKD and IFVD",
            Self::CirkdPspnet => "the PSPNet of CIRKD",
        }
    }

    /// What the publishers of such weights do to an image; none where they differ.
    pub(crate) fn normalisation(self) -> Option<Normalisation> {
        match self {
            Self::Own => None,
            Self::Torchvision
            | Self::TorchvisionDeepLabV3
            | Self::TorchvisionFcn
            | Self::TorchvisionLrAspp
            | Self::TimmMobileNetV2
            | Self::TimmMobileNetV3 => Some(IMAGENET),
            Self::TimmEfficientNet => Some(HALF),
            Self::EfficientNetLite => Some(LITE),
            Self::SkdPspnet | Self::CirkdPspnet => Some(CAFFE),
        }
    }

    /// Where a tensor belongs, by its name alone.
    pub(crate) fn place(self, name: &str) -> Place {
        if name.ends_with(".num_batches_tracked") {
            return Place::Counter;
        }
        match self {
            Self::Own => Place::Ours(name.to_string()),
            Self::Torchvision => torchvision::classifier(name),
            Self::TorchvisionDeepLabV3 => torchvision::segmentation(name, torchvision::DEEPLABV3),
            Self::TorchvisionFcn => torchvision::segmentation(name, torchvision::FCN),
            Self::TorchvisionLrAspp => torchvision::segmentation(name, torchvision::LRASPP),
            Self::TimmEfficientNet => mobile::timm_efficientnet(name),
            Self::TimmMobileNetV2 => mobile::timm_mobilenet_v2(name),
            Self::TimmMobileNetV3 => mobile::timm_mobilenet_v3(name),
            Self::EfficientNetLite => mobile::efficientnet_lite(name),
            Self::SkdPspnet => distillation::skd(name),
            Self::CirkdPspnet => distillation::cirkd(name),
        }
    }

    /// What is different apart from names is changed in place; a remark for each change, and for each difference that
    /// remains.
    pub(crate) fn adjust(
        self,
        tensors: &mut BTreeMap<String, Tensor>,
        checkpoint: &Checkpoint,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        match self {
            Self::SkdPspnet => distillation::adjust_skd(tensors, checkpoint, notes),
            Self::CirkdPspnet => distillation::to_rgb(tensors, notes),
            _ => Ok(()),
        }
    }
}

/// The name with the first matching beginning replaced.
fn replaced(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
}

fn starts_with_any(name: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}

/// Whether the name is one of a ResNet's own layers.
fn is_resnet(name: &str) -> bool {
    const STEM: [&str; 6] = ["conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3."];
    const STAGES: [&str; 4] = ["layer1.", "layer2.", "layer3.", "layer4."];
    starts_with_any(name, &STEM) || starts_with_any(name, &STAGES)
}
