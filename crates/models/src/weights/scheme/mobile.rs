//! timm's mobile networks, and the EfficientNet-Lite package.
//!
//! Sources: timm 1.0, `models/_efficientnet_blocks.py`; efficientnet-lite-pytorch 0.1.0. Blocks are counted by stage in
//! timm and in a row by the package and by torchvision.

use super::{Place, replaced, starts_with_any};

/// Blocks of the stages.
const LITE0: [usize; 7] = [1, 2, 2, 3, 3, 4, 1];
const MOBILENET_V2: [usize; 7] = [1, 2, 3, 4, 3, 3, 1];
const MOBILENET_V3: [usize; 6] = [1, 2, 3, 4, 2, 3];
/// The stages of MobileNetV3-Large whose blocks have squeeze and excitation.
const WITH_SQUEEZE: [usize; 3] = [2, 4, 5];

/// timm's names are ours.
pub(super) fn timm_efficientnet(name: &str) -> Place {
    if starts_with_any(name, &["conv_head.", "bn2.", "classifier."]) {
        Place::Elsewhere
    } else if starts_with_any(name, &["conv_stem.", "bn1.", "blocks."]) {
        Place::Ours(format!("backbone.{name}"))
    } else {
        Place::Unknown
    }
}

pub(super) fn efficientnet_lite(name: &str) -> Place {
    if starts_with_any(name, &["_conv_head.", "_bn1.", "_fc."]) {
        return Place::Elsewhere;
    }
    let stem = [("_conv_stem.", "backbone.conv_stem."), ("_bn0.", "backbone.bn1.")];
    if let Some(ours) = replaced(name, &stem) {
        return Place::Ours(ours);
    }
    let block = || {
        let (index, rest) = name.strip_prefix("_blocks.")?.split_once('.')?;
        let (stage, position) = by_stage(index.parse().ok()?, &LITE0)?;
        // The first block has no expansion; timm counts its layers from one less.
        let table: &[(&str, &str)] = if stage == 0 {
            &[("_depthwise_conv.", "conv_dw."), ("_bn1.", "bn1."), ("_project_conv.", "conv_pw."), ("_bn2.", "bn2.")]
        } else {
            &[
                ("_expand_conv.", "conv_pw."),
                ("_bn0.", "bn1."),
                ("_depthwise_conv.", "conv_dw."),
                ("_bn1.", "bn2."),
                ("_project_conv.", "conv_pwl."),
                ("_bn2.", "bn3."),
            ]
        };
        Some(Place::Ours(format!("backbone.blocks.{stage}.{position}.{}", replaced(rest, table)?)))
    };
    block().unwrap_or(Place::Unknown)
}

/// timm's MobileNetV2 by torchvision's names, which are ours.
pub(super) fn timm_mobilenet_v2(name: &str) -> Place {
    if starts_with_any(name, &["conv_head.", "bn2.", "classifier."]) {
        return Place::Elsewhere;
    }
    mobilenet(name, &MOBILENET_V2, |stage| {
        if stage == 0 {
            &[("conv_dw.", "conv.0.0."), ("bn1.", "conv.0.1."), ("conv_pw.", "conv.1."), ("bn2.", "conv.2.")]
        } else {
            &[
                ("conv_pw.", "conv.0.0."),
                ("bn1.", "conv.0.1."),
                ("conv_dw.", "conv.1.0."),
                ("bn2.", "conv.1.1."),
                ("conv_pwl.", "conv.2."),
                ("bn3.", "conv.3."),
            ]
        }
    })
}

/// timm's MobileNetV3-Large by torchvision's names, which are ours.
pub(super) fn timm_mobilenet_v3(name: &str) -> Place {
    if starts_with_any(name, &["conv_head.", "classifier."]) {
        return Place::Elsewhere;
    }
    let last = [("blocks.6.0.conv.", "backbone.features.16.0."), ("blocks.6.0.bn1.", "backbone.features.16.1.")];
    if let Some(ours) = replaced(name, &last) {
        return Place::Ours(ours);
    }
    mobilenet(name, &MOBILENET_V3, |stage| match stage {
        0 => &[("conv_dw.", "block.0.0."), ("bn1.", "block.0.1."), ("conv_pw.", "block.1.0."), ("bn2.", "block.1.1.")],
        _ if WITH_SQUEEZE.contains(&stage) => &[
            ("conv_pw.", "block.0.0."),
            ("bn1.", "block.0.1."),
            ("conv_dw.", "block.1.0."),
            ("bn2.", "block.1.1."),
            ("se.conv_reduce.", "block.2.fc1."),
            ("se.conv_expand.", "block.2.fc2."),
            ("conv_pwl.", "block.3.0."),
            ("bn3.", "block.3.1."),
        ],
        _ => &[
            ("conv_pw.", "block.0.0."),
            ("bn1.", "block.0.1."),
            ("conv_dw.", "block.1.0."),
            ("bn2.", "block.1.1."),
            ("conv_pwl.", "block.2.0."),
            ("bn3.", "block.2.1."),
        ],
    })
}

/// Layers of a block by stage: timm's names, torchvision's.
type Layers = fn(usize) -> &'static [(&'static str, &'static str)];

fn mobilenet(name: &str, blocks: &[usize], layers: Layers) -> Place {
    let stem = [("conv_stem.", "backbone.features.0.0."), ("bn1.", "backbone.features.0.1.")];
    if let Some(ours) = replaced(name, &stem) {
        return Place::Ours(ours);
    }
    let block = || {
        let (stage, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        let (position, rest) = rest.split_once('.')?;
        let (stage, position) = (stage.parse::<usize>().ok()?, position.parse::<usize>().ok()?);
        let in_stage = blocks.get(stage).is_some_and(|&count| position < count);
        // The stem is the first of torchvision's list.
        let index = 1 + blocks.iter().take(stage).sum::<usize>() + position;
        let layer = replaced(rest, layers(stage))?;
        in_stage.then(|| Place::Ours(format!("backbone.features.{index}.{layer}")))
    };
    block().unwrap_or(Place::Unknown)
}

/// Stage and position in it of a block that is counted in a row.
fn by_stage(index: usize, blocks: &[usize]) -> Option<(usize, usize)> {
    let mut position = index;
    for (stage, &count) in blocks.iter().enumerate() {
        if position < count {
            return Some((stage, position));
        }
        position -= count;
    }
    None
}
