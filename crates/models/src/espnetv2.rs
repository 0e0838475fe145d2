//! ESPNetv2, a network of depthwise dilated convolutions with 0.34 M parameters at width 1.
//!
//! Source: Mehta et al., ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network,
//! CVPR 2019, fig. 1 and 2, table 1. Parameter names and every layer are those of the authors' segmentation code
//! (sacmehta/ESPNetv2, `segmentation/cnn`), below `net.` those of its ImageNet weights up to level 4. Differences:
//! - that code has slopes after each halving's pyramid that nothing uses (`level2_0.eesp.module_act`, and the same of
//!   levels 3 and 4); they are left out: 340 558 parameters with 20 classes, where that code counts 340 782;
//! - its decoder doubles sizes, so that it needs multiples of 16; here an odd size is rounded up when halved, as its
//!   encoder does it, and every upsampling goes to the size of what it is merged with;
//! - its last upsampling, to the size of the image, is left to the caller, as with all networks here, and so is that of
//!   the logits at stride 8 to which it gives a loss of their own while training: they are the auxiliary logits.
//!
//! Logits, all gradients and running statistics agree with that code in f64.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::{Activation, PoolOptions};
use serde::{Deserialize, Serialize};

use crate::enet::NormPRelu;
use crate::layers::{Conv2d, Conv2dConfig, ConvBn, Dropout2d, PRelu};
use crate::{Error, Feature, Mode, Output, Result, Segmenter};

/// Settings of [`EspnetV2`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EspnetV2Config {
    /// All channel counts of the encoder are multiplied by this; the paper has 0.5, 1, 1.25, 1.5 and 2. The pyramids'
    /// groups need channels that are multiples of 16, which other widths may not give.
    pub width: f64,
    /// Probability with which a channel before a classifier is dropped while training; the authors have 0.1 at width 0.5.
    pub dropout: f64,
}

impl Default for EspnetV2Config {
    fn default() -> Self {
        // The authors' segmentation code.
        Self { width: 1.0, dropout: 0.2 }
    }
}

/// Channels of the first level at width 1, where they are also the most it has; each level has twice those before it.
const BASE: usize = 32;
/// Branches of a pyramid and groups of its 1×1 convolutions.
const BRANCHES: usize = 4;
/// Channels of an image.
const IMAGE: usize = 3;
/// Dilations of the branches where the receptive field of a pyramid may be 9 or more, and where it may be 7.
const WIDE: [usize; BRANCHES] = [1, 2, 3, 4];
const NARROW: [usize; BRANCHES] = [1, 1, 2, 3];
/// Pyramids after the halvings to strides 8 and 16.
const REPEATS: [usize; 2] = [3, 7];
/// Resolutions of the pyramid pooling, each half of the one before it.
const POOLINGS: usize = 4;
/// 3×3 with stride 2, rounded up. Zeros beyond the border count.
const HALVING: PoolOptions = PoolOptions { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil_mode: false };

/// ESPNetv2. Features `stage1` (stride 2), `stage2` (4), `stage3` (8), `stage4` (16), `head` (2), `logits` (2) and
/// `aux_logits` (8).
#[derive(Debug)]
pub struct EspnetV2 {
    level1: ConvNormPRelu,
    level2: Halving,
    level3: (Halving, Vec<Pyramid>),
    level4: (Halving, Vec<Pyramid>),
    project4: ConvNormPRelu,
    merge3: Pyramid,
    pooling: PyramidPooling,
    dropout3: Dropout2d,
    classify3: Conv2d,
    norm3: NormPRelu,
    merge2: ConvNormPRelu,
    dropout1: Dropout2d,
    classify1: Conv2d,
}

impl EspnetV2 {
    /// The network whose parameters `vb` holds: the encoder below `net`, the decoder beside it.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &EspnetV2Config, num_classes: usize, vb: VarBuilder) -> Result<Self> {
        let [first, second, third, fourth] = channels(config.width)?;
        let net = vb.pp("net");
        let level = |name: &str, repeats: usize, channels: usize, dilations| -> Result<Vec<_>> {
            let at = |index: usize| net.pp(format!("{name}.{index}"));
            (0..repeats).map(|index| Pyramid::new(channels, channels, dilations, true, at(index))).collect()
        };
        let one_by_one = |from, to| Conv2dConfig::same(from, to, 1);
        let (project3, project1) = (vb.pp("project_l3"), vb.pp("project_l1"));
        let image_conv = Conv2dConfig::same(IMAGE, first, 3).stride(2).kaiming_fan_out();
        Ok(Self {
            level1: ConvNormPRelu::new(image_conv, &net.pp("level1"))?,
            level2: Halving::new(first, second, net.pp("level2_0"))?,
            level3: (Halving::new(second, third, net.pp("level3_0"))?, level("level3", REPEATS[0], third, WIDE)?),
            level4: (Halving::new(third, fourth, net.pp("level4_0"))?, level("level4", REPEATS[1], fourth, NARROW)?),
            project4: ConvNormPRelu::new(one_by_one(fourth, third), &vb.pp("proj_L4_C"))?,
            merge3: Pyramid::new(2 * third, third, NARROW, false, vb.pp("pspMod.0"))?,
            pooling: PyramidPooling::new(third, vb.pp("pspMod.1"))?,
            dropout3: Dropout2d::new(config.dropout, &project3)?,
            classify3: Conv2d::new(one_by_one(third, num_classes), project3.pp("1.conv"))?,
            norm3: NormPRelu::new(num_classes, vb.pp("act_l3.bn"), vb.pp("act_l3.act"))?,
            merge2: ConvNormPRelu::new(one_by_one(second + num_classes, num_classes), &vb.pp("project_l2"))?,
            dropout1: Dropout2d::new(config.dropout, &project1)?,
            classify1: Conv2d::new(one_by_one(first + num_classes, num_classes), project1.pp("1.conv"))?,
        })
    }
}

/// Channels at strides 2, 4, 8 and 16.
fn channels(width: f64) -> Result<[usize; 4]> {
    if !(width.is_finite() && width > 0.0 && width <= 16.0) {
        return Err(Error::config("width", "above 0 and at most 16", width));
    }
    // The product is cut, then rounded up to whole groups.
    let base = ((BASE as f64 * width) as usize).next_multiple_of(BRANCHES);
    let channels = [base.min(BASE), 2 * base, 4 * base, 8 * base];
    // A pyramid's reduction has a quarter of its channels, in four groups.
    let of_pyramids = [channels[1] - channels[0], channels[2], channels[3]];
    if base == 0 || of_pyramids.iter().any(|channels| channels % (BRANCHES * BRANCHES) != 0) {
        return Err(Error::config("width", "one that gives multiples of 16 channels, such as 0.5, 1, 1.5 or 2", width));
    }
    Ok(channels)
}

impl Segmenter for EspnetV2 {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Output> {
        dsd_ops::check::nchw("espnetv2", "images", images)?;
        let run = |pyramids: &[Pyramid], x: Tensor| pyramids.iter().try_fold(x, |x, pyramid| pyramid.forward(&x, mode));
        let upsampled = |x: &Tensor, like: &Tensor| -> Result<Tensor> {
            let (_, _, height, width) = like.dims4()?;
            Ok(dsd_ops::resize_bilinear(x, [height, width], true)?)
        };
        let halved = |x: &Tensor| dsd_ops::avg_pool2d(x, HALVING, true);
        let image4 = halved(&halved(images)?)?; // [N,3,H/4,W/4]
        let image8 = halved(&image4)?;
        let image16 = halved(&image8)?;

        let stage1 = self.level1.forward(images, mode)?; // [N,32,H/2,W/2]
        let stage2 = self.level2.forward(&stage1, &image4, mode)?; // [N,64,H/4,W/4]
        let stage3 = run(&self.level3.1, self.level3.0.forward(&stage2, &image8, mode)?)?; // [N,128,H/8,W/8]
        let stage4 = run(&self.level4.1, self.level4.0.forward(&stage3, &image16, mode)?)?; // [N,256,H/16,W/16]

        let up4 = upsampled(&self.project4.forward(&stage4, mode)?, &stage3)?;
        let merged3 = self.merge3.forward(&dsd_ops::concat(&[&stage3, &up4], 1)?, mode)?;
        let pooled = self.dropout3.forward(&self.pooling.forward(&merged3, mode)?, mode)?; // [N,128,H/8,W/8]
        let aux_logits = self.classify3.forward(&pooled)?; // [N,classes,H/8,W/8]
        let up3 = upsampled(&self.norm3.forward(&aux_logits, mode)?, &stage2)?;
        let merged2 = self.merge2.forward(&dsd_ops::concat(&[&stage2, &up3], 1)?, mode)?; // [N,classes,H/4,W/4]
        let up2 = upsampled(&merged2, &stage1)?;
        let head = dsd_ops::concat(&[&stage1, &up2], 1)?; // [N,32+classes,H/2,W/2]
        let logits = self.classify1.forward(&self.dropout1.forward(&head, mode)?)?; // [N,classes,H/2,W/2]

        let features = vec![
            Feature::new("stage1", 2, stage1),
            Feature::new("stage2", 4, stage2),
            Feature::new("stage3", 8, stage3),
            Feature::new("stage4", 16, stage4),
            Feature::new("head", 2, head),
            Feature::new("logits", 2, logits.clone()),
            Feature::new("aux_logits", 8, aux_logits.clone()),
        ];
        Ok(Output { logits, aux_logits: Some(aux_logits), features })
    }
}

/// A convolution, normalisation and PReLU.
#[derive(Debug)]
struct ConvNormPRelu {
    conv: Conv2d,
    norm: NormPRelu,
}

impl ConvNormPRelu {
    fn new(config: Conv2dConfig, vb: &VarBuilder) -> Result<Self> {
        let norm = NormPRelu::new(config.out_channels, vb.pp("bn"), vb.pp("act"))?;
        Ok(Self { conv: Conv2d::new(config, vb.pp("conv"))?, norm })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, mode)
    }
}

/// A convolution and normalisation, without activation.
fn conv_norm(config: Conv2dConfig, vb: &VarBuilder) -> Result<ConvBn> {
    ConvBn::new(config, Activation::Identity, vb.pp("conv"), vb.pp("bn"))
}

/// The extremely efficient spatial pyramid up to its last activation: grouped reduction, depthwise dilated convolutions
/// side by side, hierarchical fusion, grouped 1×1 convolution.
#[derive(Debug)]
struct Branches {
    reduce: ConvNormPRelu,
    branches: Vec<Conv2d>,
    merged_norm: NormPRelu,
    expand: ConvBn,
}

impl Branches {
    fn new(
        in_channels: usize,
        out_channels: usize,
        dilations: [usize; BRANCHES],
        stride: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let inner = out_channels / BRANCHES;
        let one_by_one = |from, to| Conv2dConfig::same(from, to, 1).groups(BRANCHES).kaiming_fan_out();
        let branches = dilations.iter().enumerate().map(|(index, &dilation)| {
            let depthwise = Conv2dConfig::same(inner, inner, 3).dilation(dilation).stride(stride).groups(inner);
            Conv2d::new(depthwise.kaiming_fan_out(), vb.pp(format!("spp_dw.{index}.conv")))
        });
        Ok(Self {
            reduce: ConvNormPRelu::new(one_by_one(in_channels, inner), &vb.pp("proj_1x1"))?,
            branches: branches.collect::<Result<_>>()?,
            merged_norm: NormPRelu::new(out_channels, vb.pp("br_after_cat.bn"), vb.pp("br_after_cat.act"))?,
            expand: conv_norm(one_by_one(out_channels, out_channels), &vb.pp("conv_1x1_exp"))?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let reduced = self.reduce.forward(x, mode)?;
        let mut merged: Vec<Tensor> = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let own = branch.forward(&reduced)?;
            let sum = match merged.last() {
                Some(sum) => dsd_ops::add(&own, sum)?,
                None => own,
            };
            merged.push(sum);
        }
        self.expand.forward(&self.merged_norm.forward(&dsd_ops::concat(&merged, 1)?, mode)?, mode)
    }
}

/// A pyramid that keeps the resolution.
#[derive(Debug)]
struct Pyramid {
    branches: Branches,
    residual: bool,
    prelu: PRelu,
}

impl Pyramid {
    fn new(
        in_channels: usize,
        out_channels: usize,
        dilations: [usize; BRANCHES],
        residual: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let branches = Branches::new(in_channels, out_channels, dilations, 1, &vb)?;
        Ok(Self { branches, residual, prelu: PRelu::new(out_channels, vb.pp("module_act"))? })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let expanded = self.branches.forward(x, mode)?;
        self.prelu.forward(&if self.residual { dsd_ops::add(&expanded, x)? } else { expanded })
    }
}

/// Halves the resolution: the pooled input beside a pyramid with stride 2, and to both the image at that size is added.
#[derive(Debug)]
struct Halving {
    branches: Branches,
    image: ConvNormPRelu,
    image_expand: ConvBn,
    prelu: PRelu,
}

impl Halving {
    fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let image = Conv2dConfig::same(IMAGE, IMAGE, 3).kaiming_fan_out();
        let image_expand = Conv2dConfig::same(IMAGE, out_channels, 1).kaiming_fan_out();
        Ok(Self {
            branches: Branches::new(in_channels, out_channels - in_channels, WIDE, 2, &vb.pp("eesp"))?,
            image: ConvNormPRelu::new(image, &vb.pp("inp_reinf.0"))?,
            image_expand: conv_norm(image_expand, &vb.pp("inp_reinf.1"))?,
            prelu: PRelu::new(out_channels, vb.pp("act"))?,
        })
    }

    fn forward(&self, x: &Tensor, image: &Tensor, mode: Mode) -> Result<Tensor> {
        let pooled = dsd_ops::avg_pool2d(x, HALVING, true)?;
        let merged = dsd_ops::concat(&[&pooled, &self.branches.forward(x, mode)?], 1)?;
        let image = self.image_expand.forward(&self.image.forward(image, mode)?, mode)?;
        self.prelu.forward(&dsd_ops::add(&merged, &image)?)
    }
}

/// The input at four lower resolutions, each through a depthwise convolution, beside the input itself.
#[derive(Debug)]
struct PyramidPooling {
    stages: Vec<Conv2d>,
    project: ConvNormPRelu,
}

impl PyramidPooling {
    fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        let stage = |index: usize| {
            let depthwise = Conv2dConfig::same(channels, channels, 3).groups(channels);
            Conv2d::new(depthwise, vb.pp(format!("stages.{index}.conv")))
        };
        let project = Conv2dConfig::same((POOLINGS + 1) * channels, channels, 1);
        Ok(Self {
            stages: (0..POOLINGS).map(stage).collect::<Result<_>>()?,
            project: ConvNormPRelu::new(project, &vb.pp("project"))?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let (mut pooled, mut parts) = (x.clone(), vec![x.clone()]);
        for stage in &self.stages {
            pooled = dsd_ops::avg_pool2d(&pooled, HALVING, true)?;
            parts.push(dsd_ops::resize_bilinear(&stage.forward(&pooled)?, [height, width], true)?);
        }
        self.project.forward(&dsd_ops::concat(&parts, 1)?, mode)
    }
}
