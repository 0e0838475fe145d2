//! ENet, a network of 0.37 M parameters that looks at the whole street.
//!
//! Source: Paszke et al., ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation,
//! arXiv 1606.02147, table 1 and fig. 2. Where the paper leaves a choice:
//! - the inner channels of a bottleneck are a quarter of its *output*, as in the authors' Torch code; with 19 classes
//!   this gives 365 839 parameters, the 0.37 M of the paper's table 3 (public re-implementations that take a quarter
//!   of the input when upsampling have about 0.36 M);
//! - normalisation and PReLU stand between all convolutions (section 4), the two of an asymmetric pair included, and
//!   in the decoder too;
//! - the last layer is a 3×3 transposed convolution without bias;
//! - an odd size is rounded up when halved, so that feature sizes are those of a ResNet at the same stride, and every
//!   upsampling restores the size that its downsampling saw.
//!
//! Logits, all gradients and running statistics agree with PyTorch in f64 (`tests/reference/networks.py`).
//!
//! Public weights have another form, [`EnetForm::PytorchEnet`]: see there.

mod pytorch_enet;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::{Activation, PoolOptions};
use serde::{Deserialize, Serialize};

use crate::backbone::scaled;
use crate::layers::{BatchNorm2d, Conv2d, Conv2dConfig, Doubling, Dropout2d, PRelu};
use crate::{Error, Feature, Mode, Output, Result, Segmenter};
use pytorch_enet::PytorchEnet;

/// Which of the networks that are called ENet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnetForm {
    /// As the paper describes it.
    #[default]
    Paper,
    /// As the most used public weights have it, by their parameter names and layers (davidtvs/PyTorch-ENet, 351 660
    /// parameters with 19 classes). Against the paper: the inner channels of every bottleneck are a quarter of its
    /// *input*; PReLU has one slope for all channels, and the decoder has ReLU; the expansion ends with an activation of
    /// its own before the addition, except when upsampling; the image is pooled by 3×3; the transposed convolutions of
    /// the bottlenecks are 2×2. After the first halving an odd size is rounded down, so that the features of an image
    /// whose sides are no multiples of 8 may be a pixel smaller than those of other networks at the same stride.
    PytorchEnet,
}

/// Settings of [`Enet`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnetConfig {
    /// All channel counts are multiplied by this and rounded; the paper has 1.
    pub width: f64,
    /// Probability with which a channel is dropped before `bottleneck2.0`.
    pub early_dropout: f64,
    /// Probability with which a channel is dropped from `bottleneck2.0` on.
    pub dropout: f64,
    /// Which of the networks that are called ENet.
    pub form: EnetForm,
}

impl Default for EnetConfig {
    fn default() -> Self {
        // Section 4 of the paper.
        Self { width: 1.0, early_dropout: 0.01, dropout: 0.1, form: EnetForm::Paper }
    }
}

/// Channels of the initial block, of stage 1 and of stages 2 and 3.
const CHANNELS: [usize; 3] = [16, 64, 128];
/// Inner channels are the output channels over this.
const PROJECTION: usize = 4;
/// The bottlenecks of section 2 after its first; section 3 repeats them.
const SECTION: [Kind; 8] = [
    Kind::Regular,
    Kind::Dilated(2),
    Kind::Asymmetric(5),
    Kind::Dilated(4),
    Kind::Regular,
    Kind::Dilated(8),
    Kind::Asymmetric(5),
    Kind::Dilated(16),
];
/// 2×2 with stride 2, rounded up.
const HALVING: PoolOptions = PoolOptions { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil_mode: true };

/// The middle convolution of a bottleneck.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Regular,
    Dilated(usize),
    Asymmetric(usize),
}

/// ENet. Features `stage1` (stride 4), `stage2` and `stage3` (8), `stage4` (4), `stage5` (2), `head` (the same as
/// `stage5`) and `logits` (1).
#[derive(Debug)]
pub struct Enet(Form);

#[derive(Debug)]
enum Form {
    Paper(Box<PaperEnet>),
    PytorchEnet(Box<PytorchEnet>),
}

impl Enet {
    /// The network whose parameters `vb` holds: `initial`, `bottleneck1.0` … `bottleneck5.1`, `fullconv` in the paper's
    /// form, `initial_block`, `downsample1_0` … `regular5_1`, `transposed_conv` in the other.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &EnetConfig, num_classes: usize, vb: VarBuilder) -> Result<Self> {
        let [narrow, middle, wide] = CHANNELS.map(|channels| scaled(channels, config.width));
        // Three of the first channels are the pooled image.
        let channels @ [narrow, middle, wide] = [narrow?.max(4), middle?, wide?];
        if middle < narrow || wide < middle {
            return Err(Error::config("width", "large enough that channels grow from stage to stage", config.width));
        }
        Ok(Self(match config.form {
            EnetForm::Paper => Form::Paper(Box::new(PaperEnet::new(config, channels, num_classes, &vb)?)),
            EnetForm::PytorchEnet => Form::PytorchEnet(Box::new(PytorchEnet::new(config, channels, num_classes, &vb)?)),
        }))
    }
}

impl Segmenter for Enet {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Output> {
        dsd_ops::check::nchw("enet", "images", images)?;
        let Stages { stage1, stage2, stage3, stage4, stage5, logits } = match &self.0 {
            Form::Paper(network) => network.forward(images, mode)?,
            Form::PytorchEnet(network) => network.forward(images, mode)?,
        };
        let features = vec![
            Feature::new("stage1", 4, stage1),
            Feature::new("stage2", 8, stage2),
            Feature::new("stage3", 8, stage3),
            Feature::new("stage4", 4, stage4),
            Feature::new("stage5", 2, stage5.clone()),
            Feature::new("head", 2, stage5),
            Feature::new("logits", 1, logits.clone()),
        ];
        Ok(Output { logits, aux_logits: None, features })
    }
}

/// What each stage gives.
struct Stages {
    stage1: Tensor,
    stage2: Tensor,
    stage3: Tensor,
    stage4: Tensor,
    stage5: Tensor,
    logits: Tensor,
}

#[derive(Debug)]
struct PaperEnet {
    initial: Conv2d,
    initial_norm: NormPRelu,
    down1: Downsampling,
    stage1: Vec<Bottleneck>,
    down2: Downsampling,
    stage2: Vec<Bottleneck>,
    stage3: Vec<Bottleneck>,
    up4: Upsampling,
    stage4: Vec<Bottleneck>,
    up5: Upsampling,
    stage5: Vec<Bottleneck>,
    full: Doubling,
}

impl PaperEnet {
    fn new(config: &EnetConfig, channels: [usize; 3], num_classes: usize, vb: &VarBuilder) -> Result<Self> {
        let [narrow, middle, wide] = channels;
        let block = |section: usize, index: usize| vb.pp(format!("bottleneck{section}.{index}"));
        let run = |section: usize, first: usize, kinds: &[Kind], channels: usize, dropout: f64| -> Result<Vec<_>> {
            let blocks = kinds.iter().zip(first..);
            blocks.map(|(kind, index)| Bottleneck::new(channels, *kind, dropout, block(section, index))).collect()
        };
        let &EnetConfig { early_dropout: early, dropout, .. } = config;
        Ok(Self {
            initial: Conv2d::new(Conv2dConfig::same(3, narrow - 3, 3).stride(2), vb.pp("initial.conv"))?,
            initial_norm: NormPRelu::new(narrow, vb.pp("initial.bn"), vb.pp("initial.prelu"))?,
            down1: Downsampling::new(narrow, middle, early, block(1, 0))?,
            stage1: run(1, 1, &[Kind::Regular; 4], middle, early)?,
            down2: Downsampling::new(middle, wide, dropout, block(2, 0))?,
            stage2: run(2, 1, &SECTION, wide, dropout)?,
            stage3: run(3, 0, &SECTION, wide, dropout)?,
            up4: Upsampling::new(wide, middle, dropout, block(4, 0))?,
            stage4: run(4, 1, &[Kind::Regular; 2], middle, dropout)?,
            up5: Upsampling::new(middle, narrow, dropout, block(5, 0))?,
            stage5: run(5, 1, &[Kind::Regular], narrow, dropout)?,
            full: Doubling::new(narrow, num_classes, vb.pp("fullconv"))?,
        })
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Stages> {
        let (_, _, height, width) = images.dims4()?;
        let run = |blocks: &[Bottleneck], x: Tensor| blocks.iter().try_fold(x, |x, block| block.forward(&x, mode));

        let branches = [self.initial.forward(images)?, dsd_ops::max_pool2d(images, HALVING)?];
        let initial = self.initial_norm.forward(&dsd_ops::concat(&branches, 1)?, mode)?; // [N,16,H/2,W/2]
        let (x, pooled1) = self.down1.forward(&initial, mode)?;
        let stage1 = run(&self.stage1, x)?; // [N,64,H/4,W/4]
        let (x, pooled2) = self.down2.forward(&stage1, mode)?;
        let stage2 = run(&self.stage2, x)?; // [N,128,H/8,W/8]
        let stage3 = run(&self.stage3, stage2.clone())?; // [N,128,H/8,W/8]
        let stage4 = run(&self.stage4, self.up4.forward(&stage3, &pooled2, mode)?)?; // [N,64,H/4,W/4]
        let stage5 = run(&self.stage5, self.up5.forward(&stage4, &pooled1, mode)?)?; // [N,16,H/2,W/2]
        let logits = self.full.forward(&stage5, [height, width])?; // [N,classes,H,W]
        Ok(Stages { stage1, stage2, stage3, stage4, stage5, logits })
    }
}

/// Normalisation and PReLU.
#[derive(Debug)]
pub(crate) struct NormPRelu {
    norm: BatchNorm2d,
    prelu: PRelu,
}

impl NormPRelu {
    pub(crate) fn new(channels: usize, norm: VarBuilder, prelu: VarBuilder) -> Result<Self> {
        Ok(Self { norm: BatchNorm2d::new(channels, norm)?, prelu: PRelu::new(channels, prelu)? })
    }

    /// The same with this number added to the variance before its root (1e-5 otherwise).
    pub(crate) fn with_eps(mut self, eps: f64) -> Self {
        self.norm = self.norm.with_eps(eps);
        self
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward_prelu(x, &self.prelu, mode)
    }
}

/// What all bottlenecks end with: 1×1 convolution, normalisation, dropout, addition to the main branch, PReLU.
#[derive(Debug)]
struct Expansion {
    conv: Conv2d,
    norm: BatchNorm2d,
    dropout: Dropout2d,
    prelu: PRelu,
}

impl Expansion {
    fn new(inner: usize, channels: usize, dropout: f64, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(Conv2dConfig::same(inner, channels, 1), vb.pp("expand.conv"))?,
            norm: BatchNorm2d::new(channels, vb.pp("expand.bn"))?,
            dropout: Dropout2d::new(dropout, vb)?,
            prelu: PRelu::new(channels, vb.pp("prelu"))?,
        })
    }

    fn forward(&self, extension: &Tensor, main: &Tensor, mode: Mode) -> Result<Tensor> {
        let expanded = self.norm.forward(&self.conv.forward(extension)?, Activation::Identity, mode)?;
        self.prelu.forward(&dsd_ops::add(&self.dropout.forward(&expanded, mode)?, main)?)
    }
}

fn inner_channels(out_channels: usize) -> usize {
    (out_channels / PROJECTION).max(1)
}

/// A convolution, normalisation and PReLU.
#[derive(Debug)]
struct ConvNormPRelu {
    conv: Conv2d,
    norm: NormPRelu,
}

impl ConvNormPRelu {
    fn new(config: Conv2dConfig, vb: VarBuilder) -> Result<Self> {
        let norm = NormPRelu::new(config.out_channels, vb.pp("bn"), vb.pp("prelu"))?;
        Ok(Self { conv: Conv2d::new(config, vb.pp("conv"))?, norm })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, mode)
    }
}

/// A bottleneck that keeps resolution and channels.
#[derive(Debug)]
struct Bottleneck {
    layers: Vec<ConvNormPRelu>,
    expand: Expansion,
}

impl Bottleneck {
    fn new(channels: usize, kind: Kind, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(channels);
        let square = Conv2dConfig::same(inner, inner, 3);
        let middle = match kind {
            Kind::Regular => vec![square],
            Kind::Dilated(dilation) => vec![square.dilation(dilation)],
            Kind::Asymmetric(size) => vec![square.kernel([size, 1]), square.kernel([1, size])],
        };
        let layers = std::iter::once(Conv2dConfig::same(channels, inner, 1)).chain(middle).enumerate();
        let layers = layers.map(|(index, config)| ConvNormPRelu::new(config, vb.pp(format!("layers.{index}"))));
        Ok(Self { layers: layers.collect::<Result<_>>()?, expand: Expansion::new(inner, channels, dropout, &vb)? })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let extension = self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, mode))?;
        self.expand.forward(&extension, x, mode)
    }
}

/// Where the maxima of a pooled tensor were, and what size it had.
#[derive(Debug)]
struct Pooled {
    indices: Tensor,
    size: [usize; 2],
}

/// A bottleneck that halves the resolution: the main branch is pooled and filled up with zero channels.
#[derive(Debug)]
struct Downsampling {
    reduce: ConvNormPRelu,
    middle: ConvNormPRelu,
    expand: Expansion,
    extra_channels: usize,
}

impl Downsampling {
    fn new(in_channels: usize, out_channels: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(out_channels);
        let halving = Conv2dConfig::same(in_channels, inner, 2).stride(2).unpadded();
        Ok(Self {
            reduce: ConvNormPRelu::new(halving, vb.pp("layers.0"))?,
            middle: ConvNormPRelu::new(Conv2dConfig::same(inner, inner, 3), vb.pp("layers.1"))?,
            expand: Expansion::new(inner, out_channels, dropout, &vb)?,
            extra_channels: out_channels - in_channels,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Pooled)> {
        let (_, _, height, width) = x.dims4()?;
        let (main, indices) = dsd_ops::max_pool2d_with_indices(x, HALVING)?;
        let main = dsd_ops::pad_end(&main, 1, self.extra_channels)?;
        // The last row and column of an odd size are completed with zeros: as many windows as the pooling has.
        let even = dsd_ops::pad_end(&dsd_ops::pad_end(x, 2, height % 2)?, 3, width % 2)?;
        let extension = self.middle.forward(&self.reduce.forward(&even, mode)?, mode)?;
        Ok((self.expand.forward(&extension, &main, mode)?, Pooled { indices, size: [height, width] }))
    }
}

/// A bottleneck that restores the resolution before a [`Downsampling`]: the main branch is reduced and put back to
/// where its maxima were.
#[derive(Debug)]
struct Upsampling {
    main: Conv2d,
    main_norm: BatchNorm2d,
    reduce: ConvNormPRelu,
    double: Doubling,
    double_norm: NormPRelu,
    expand: Expansion,
}

impl Upsampling {
    fn new(in_channels: usize, out_channels: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(out_channels);
        let layer = vb.pp("layers.1");
        Ok(Self {
            main: Conv2d::new(Conv2dConfig::same(in_channels, out_channels, 1), vb.pp("main.conv"))?,
            main_norm: BatchNorm2d::new(out_channels, vb.pp("main.bn"))?,
            reduce: ConvNormPRelu::new(Conv2dConfig::same(in_channels, inner, 1), vb.pp("layers.0"))?,
            double: Doubling::new(inner, inner, layer.pp("conv"))?,
            double_norm: NormPRelu::new(inner, layer.pp("bn"), layer.pp("prelu"))?,
            expand: Expansion::new(inner, out_channels, dropout, &vb)?,
        })
    }

    fn forward(&self, x: &Tensor, pooled: &Pooled, mode: Mode) -> Result<Tensor> {
        let main = self.main_norm.forward(&self.main.forward(x)?, Activation::Identity, mode)?;
        let main = dsd_ops::max_unpool2d(&main, &pooled.indices, pooled.size)?;
        let doubled = self.double.forward(&self.reduce.forward(x, mode)?, pooled.size)?;
        self.expand.forward(&self.double_norm.forward(&doubled, mode)?, &main, mode)
    }
}
