//! torchvision's names, which are also ours inside a backbone, and those of the encoders that took them over.
//!
//! Source: torchvision 0.2x, `models/resnet.py`, `mobilenetv2.py`, `mobilenetv3.py`, `segmentation/*.py`.

use super::{Place, is_resnet, replaced, starts_with_any};

type Table = &'static [(&'static str, &'static str)];

pub(super) const DEEPLABV3: Table = &[
    ("classifier.0.convs.0.0.", "decoder.branches.0.conv."),
    ("classifier.0.convs.0.1.", "decoder.branches.0.bn."),
    ("classifier.0.convs.1.0.", "decoder.branches.1.conv."),
    ("classifier.0.convs.1.1.", "decoder.branches.1.bn."),
    ("classifier.0.convs.2.0.", "decoder.branches.2.conv."),
    ("classifier.0.convs.2.1.", "decoder.branches.2.bn."),
    ("classifier.0.convs.3.0.", "decoder.branches.3.conv."),
    ("classifier.0.convs.3.1.", "decoder.branches.3.bn."),
    ("classifier.0.convs.4.1.", "decoder.pooling.conv."),
    ("classifier.0.convs.4.2.", "decoder.pooling.bn."),
    ("classifier.0.project.0.", "decoder.project.conv."),
    ("classifier.0.project.1.", "decoder.project.bn."),
    ("classifier.1.", "decoder.bottleneck.conv."),
    ("classifier.2.", "decoder.bottleneck.bn."),
    ("classifier.4.", "classifier."),
];

pub(super) const FCN: Table =
    &[("classifier.0.", "decoder.conv."), ("classifier.1.", "decoder.bn."), ("classifier.4.", "classifier.")];

pub(super) const LRASPP: Table = &[
    ("classifier.cbr.0.", "decoder.reduce.conv."),
    ("classifier.cbr.1.", "decoder.reduce.bn."),
    ("classifier.scale.1.", "decoder.scale."),
    ("classifier.low_classifier.", "low_classifier."),
    ("classifier.high_classifier.", "classifier."),
];

const AUX: Table =
    &[("aux_classifier.0.", "aux.conv."), ("aux_classifier.1.", "aux.bn."), ("aux_classifier.4.", "aux.classifier.")];

/// Parts of classifiers that a backbone does not have: the last layers, and the last convolution of MobileNetV2.
const NO_BACKBONE: [&str; 4] = ["fc.", "classifier.", "features.18.", "segmentation_head."];

/// An image classifier, or the encoder of a network of segmentation_models.pytorch.
pub(super) fn classifier(name: &str) -> Place {
    let name = name.strip_prefix("encoder.").unwrap_or(name);
    if starts_with_any(name, &NO_BACKBONE) {
        Place::Elsewhere
    } else if is_resnet(name) || name.starts_with("features.") {
        Place::Ours(format!("backbone.{name}"))
    } else {
        Place::Unknown
    }
}

/// A segmentation network with this decoder.
pub(super) fn segmentation(name: &str, decoder: Table) -> Place {
    if let Some(ours) = replaced(name, decoder).or_else(|| replaced(name, AUX)) {
        return Place::Ours(ours);
    }
    match name.strip_prefix("backbone.") {
        Some(inner) if is_resnet(inner) => Place::Ours(name.to_string()),
        // The layers of a MobileNet are numbered without the name of the list that they are in.
        Some(inner) if inner.starts_with(|first: char| first.is_ascii_digit()) => {
            Place::Ours(format!("backbone.features.{inner}"))
        }
        _ => Place::Unknown,
    }
}
