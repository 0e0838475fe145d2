//! PSPNet as the published codes of distillation papers have it.
//!
//! Sources: structure_knowledge_distillation (SKD), `networks/pspnet_combine.py` and `dataset/datasets.py`; IFVD,
//! `networks/pspnet.py`, the same network; CIRKD, `models/pspnet.py`, `models/base_models/resnetv1b.py` and
//! `dataset/cityscapes.py`. All read images by OpenCV, that is as BGR, and subtract Caffe's mean without scaling.
//!
//! What the network of SKD and IFVD has otherwise, and what becomes of it:
//! - the pyramid's branches stand before the feature in the concatenation, here behind it: the weights of the merging
//!   convolution are put into our order;
//! - the convolution of the auxiliary head has a bias before its normalisation: subtracted from the running mean, which
//!   is the same in evaluation;
//! - normalisation is in-place ABN, which scales by |weight| + ε: so are the weights;
//! - leaky ReLU (slope 0.01) in the pyramid and the auxiliary head, a max pool that rounds up, and the dilation of a
//!   stage from its first convolution on: they remain different, and are remarked.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Place, is_resnet, replaced};
use crate::Result;
use crate::weights::checkpoint::Checkpoint;

/// ε of in-place ABN.
const ABN_EPS: f64 = 1e-5;
const AUX_BIAS: &str = "dsn.0.bias";
const AUX_MEAN: &str = "aux.bn.running_mean";
const MERGE: &str = "decoder.bottleneck.conv.weight";

/// The pyramid; pooling is the first layer of a branch.
const PYRAMID: [(&str, &str); 10] = [
    ("stages.0.1.", "decoder.stages.0.conv."),
    ("stages.0.2.", "decoder.stages.0.bn."),
    ("stages.1.1.", "decoder.stages.1.conv."),
    ("stages.1.2.", "decoder.stages.1.bn."),
    ("stages.2.1.", "decoder.stages.2.conv."),
    ("stages.2.2.", "decoder.stages.2.bn."),
    ("stages.3.1.", "decoder.stages.3.conv."),
    ("stages.3.2.", "decoder.stages.3.bn."),
    ("bottleneck.0.", "decoder.bottleneck.conv."),
    ("bottleneck.1.", "decoder.bottleneck.bn."),
];

/// Names of SKD and IFVD, and of the earlier form in which the pyramid is the first half of `head`.
pub(super) fn skd(name: &str) -> Place {
    if name == AUX_BIAS {
        return Place::PartOf(AUX_MEAN.to_string());
    }
    if is_resnet(name) {
        return Place::Ours(format!("backbone.{name}"));
    }
    let pyramid = ["pspmodule.", "head.0."].into_iter().find_map(|prefix| name.strip_prefix(prefix));
    if let Some(inner) = pyramid {
        return replaced(inner, &PYRAMID).map_or(Place::Unknown, Place::Ours);
    }
    let heads = [
        ("head.1.", "classifier."),
        ("head.", "classifier."),
        ("dsn.0.", "aux.conv."),
        ("dsn.1.", "aux.bn."),
        ("dsn.3.", "aux.classifier."),
    ];
    replaced(name, &heads).map_or(Place::Unknown, Place::Ours)
}

/// Names of CIRKD.
pub(super) fn cirkd(name: &str) -> Place {
    if let Some(inner) = name.strip_prefix("pretrained.") {
        return if is_resnet(inner) { Place::Ours(format!("backbone.{inner}")) } else { Place::Elsewhere };
    }
    let heads = [
        ("head.psp.conv1.0.", "decoder.stages.0.conv."),
        ("head.psp.conv1.1.", "decoder.stages.0.bn."),
        ("head.psp.conv2.0.", "decoder.stages.1.conv."),
        ("head.psp.conv2.1.", "decoder.stages.1.bn."),
        ("head.psp.conv3.0.", "decoder.stages.2.conv."),
        ("head.psp.conv3.1.", "decoder.stages.2.bn."),
        ("head.psp.conv4.0.", "decoder.stages.3.conv."),
        ("head.psp.conv4.1.", "decoder.stages.3.bn."),
        ("head.block.0.", "decoder.bottleneck.conv."),
        ("head.block.1.", "decoder.bottleneck.bn."),
        ("head.classifier.", "classifier."),
        ("auxlayer.block.0.", "aux.conv."),
        ("auxlayer.block.1.", "aux.bn."),
        ("auxlayer.block.4.", "aux.classifier."),
    ];
    replaced(name, &heads).map_or(Place::Unknown, Place::Ours)
}

/// The input channels of the first convolution from B, G, R to R, G, B.
pub(super) fn to_rgb(tensors: &mut BTreeMap<String, Tensor>, notes: &mut Vec<String>) -> Result<()> {
    if let Some(first) = tensors.get_mut("backbone.conv1.weight") {
        *first = first.flip(&[1])?;
        notes.push("the first convolution was put from BGR to RGB; the mean is Caffe's, the scale 0–255".to_string());
    }
    Ok(())
}

pub(super) fn adjust_skd(
    tensors: &mut BTreeMap<String, Tensor>,
    checkpoint: &Checkpoint,
    notes: &mut Vec<String>,
) -> Result<()> {
    to_rgb(tensors, notes)?;
    let deepest = tensors.get("decoder.stages.0.conv.weight").map(|weight| weight.dim(1)).transpose()?;
    if let (Some(merge), Some(deepest)) = (tensors.get_mut(MERGE), deepest) {
        let branches = merge.dim(1)?.saturating_sub(deepest);
        let parts = [merge.narrow(1, branches, deepest)?, merge.narrow(1, 0, branches)?];
        *merge = Tensor::cat(&parts, 1)?;
        notes.push("the inputs of the merging convolution were put into our order, the feature first".to_string());
    }
    if let Some(mean) = tensors.get_mut(AUX_MEAN)
        && checkpoint.tensors().any(|(name, shape)| name == AUX_BIAS && shape == mean.dims())
    {
        *mean = (&*mean - checkpoint.tensor(AUX_BIAS)?)?;
        notes.push("the bias before the auxiliary head's normalisation was taken into its running mean".to_string());
    }
    let names: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(".running_var")).map(str::to_string).collect();
    for name in names {
        if let Some(weight) = tensors.get_mut(&format!("{name}.weight")) {
            *weight = (weight.abs()? + ABN_EPS)?;
        }
    }
    notes.push("the scales of all normalisations are |weight| + 1e-5, as in-place ABN uses them".to_string());
    notes.push(
        "not the same network: there leaky ReLU in the pyramid, a max pool that rounds up, and a stage's dilation from \
         its first convolution on; evaluate before relying on it"
            .to_string(),
    );
    Ok(())
}
