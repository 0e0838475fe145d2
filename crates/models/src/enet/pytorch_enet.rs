//! ENet in the form of the most used public weights: davidtvs/PyTorch-ENet, by its parameter names and layers.
//!
//! What differs from the paper is said at [`EnetForm::PytorchEnet`](super::EnetForm::PytorchEnet). Logits, all gradients
//! and running statistics agree with that code in f64, odd sizes included.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::{Activation, ConvTranspose2dOptions, PoolOptions};

use super::{EnetConfig, Kind, Pooled, SECTION, Stages, inner_channels};
use crate::init::TORCH_CONV;
use crate::layers::{BatchNorm2d, Conv2d, Conv2dConfig, Doubling, Dropout2d, PRelu, conv_transpose2d};
use crate::{Mode, Result};

/// The pooling of the image: 3×3 with stride 2, rounded up.
const IMAGE_POOLING: PoolOptions = PoolOptions { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil_mode: false };
/// The pooling between stages: 2×2 with stride 2, rounded down.
const HALVING: PoolOptions = PoolOptions { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil_mode: false };

/// The half of the network that a layer is in, which decides its rectifier.
#[derive(Clone, Copy, Debug)]
enum Half {
    Encoder,
    Decoder,
}

/// ENet of PyTorch-ENet.
#[derive(Debug)]
pub(super) struct PytorchEnet {
    initial: Conv2d,
    initial_norm: Norm,
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

impl PytorchEnet {
    pub(super) fn new(
        config: &EnetConfig,
        [narrow, middle, wide]: [usize; 3],
        num_classes: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        use Half::{Decoder, Encoder};
        let run = |half, stage: usize, first: usize, kinds: &[Kind], channels, dropout| -> Result<Vec<_>> {
            let blocks = kinds.iter().zip(first..).map(|(kind, index)| {
                let name = match kind {
                    Kind::Regular => "regular",
                    Kind::Dilated(_) => "dilated",
                    Kind::Asymmetric(_) => "asymmetric",
                };
                Bottleneck::new(half, channels, *kind, dropout, vb.pp(format!("{name}{stage}_{index}")))
            });
            blocks.collect()
        };
        let &EnetConfig { early_dropout: early, dropout, .. } = config;
        let initial = vb.pp("initial_block");
        let image_conv = Conv2dConfig::same(3, narrow - 3, 3).stride(2);
        Ok(Self {
            initial: Conv2d::new(image_conv, initial.pp("main_branch"))?,
            initial_norm: Norm::new(Encoder, narrow, initial.pp("batch_norm"), initial.pp("out_activation"))?,
            down1: Downsampling::new(narrow, middle, early, vb.pp("downsample1_0"))?,
            stage1: run(Encoder, 1, 1, &[Kind::Regular; 4], middle, early)?,
            down2: Downsampling::new(middle, wide, dropout, vb.pp("downsample2_0"))?,
            stage2: run(Encoder, 2, 1, &SECTION, wide, dropout)?,
            stage3: run(Encoder, 3, 0, &SECTION, wide, dropout)?,
            up4: Upsampling::new(wide, middle, dropout, vb.pp("upsample4_0"))?,
            stage4: run(Decoder, 4, 1, &[Kind::Regular; 2], middle, dropout)?,
            up5: Upsampling::new(middle, narrow, dropout, vb.pp("upsample5_0"))?,
            stage5: run(Decoder, 5, 1, &[Kind::Regular], narrow, dropout)?,
            full: Doubling::new(narrow, num_classes, vb.pp("transposed_conv"))?,
        })
    }

    pub(super) fn forward(&self, images: &Tensor, mode: Mode) -> Result<Stages> {
        let (_, _, height, width) = images.dims4()?;
        let run = |blocks: &[Bottleneck], x: Tensor| blocks.iter().try_fold(x, |x, block| block.forward(&x, mode));

        let branches = [self.initial.forward(images)?, dsd_ops::max_pool2d(images, IMAGE_POOLING)?];
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

/// PReLU with one slope for all channels in the encoder, ReLU in the decoder.
#[derive(Debug)]
enum Rectifier {
    PRelu(PRelu),
    Relu,
}

impl Rectifier {
    fn new(half: Half, vb: VarBuilder) -> Result<Self> {
        Ok(match half {
            Half::Encoder => Self::PRelu(PRelu::new(1, vb)?),
            Half::Decoder => Self::Relu,
        })
    }
}

/// Normalisation and the rectifier.
#[derive(Debug)]
struct Norm {
    norm: BatchNorm2d,
    rectifier: Rectifier,
}

impl Norm {
    fn new(half: Half, channels: usize, norm: VarBuilder, rectifier: VarBuilder) -> Result<Self> {
        Ok(Self { norm: BatchNorm2d::new(channels, norm)?, rectifier: Rectifier::new(half, rectifier)? })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match &self.rectifier {
            Rectifier::PRelu(prelu) => self.norm.forward_prelu(x, prelu, mode),
            Rectifier::Relu => self.norm.forward(x, Activation::Relu, mode),
        }
    }
}

/// A convolution, normalisation and the rectifier, at three consecutive numbers of a list.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: Norm,
}

impl ConvNorm {
    fn new(half: Half, config: Conv2dConfig, list: &VarBuilder, first: usize) -> Result<Self> {
        let at = |offset: usize| list.pp(first + offset);
        let norm = Norm::new(half, config.out_channels, at(1), at(2))?;
        Ok(Self { conv: Conv2d::new(config, at(0))?, norm })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, mode)
    }
}

/// What all bottlenecks end with: dropout, addition to the main branch, the rectifier.
#[derive(Debug)]
struct Addition {
    dropout: Dropout2d,
    rectifier: Rectifier,
}

impl Addition {
    fn new(half: Half, dropout: f64, vb: &VarBuilder) -> Result<Self> {
        let rectifier = Rectifier::new(half, vb.pp("out_activation"))?;
        Ok(Self { dropout: Dropout2d::new(dropout, vb)?, rectifier })
    }

    fn forward(&self, extension: &Tensor, main: &Tensor, mode: Mode) -> Result<Tensor> {
        let extension = self.dropout.forward(extension, mode)?;
        match &self.rectifier {
            Rectifier::PRelu(prelu) => prelu.forward(&dsd_ops::add(&extension, main)?),
            Rectifier::Relu => Ok(dsd_ops::add_relu(&extension, main)?),
        }
    }
}

/// A bottleneck that keeps resolution and channels.
#[derive(Debug)]
struct Bottleneck {
    layers: Vec<ConvNorm>,
    add: Addition,
}

impl Bottleneck {
    fn new(half: Half, channels: usize, kind: Kind, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(channels);
        let square = Conv2dConfig::same(inner, inner, 3);
        let middle = match kind {
            Kind::Regular => vec![square],
            Kind::Dilated(dilation) => vec![square.dilation(dilation)],
            Kind::Asymmetric(size) => vec![square.kernel([size, 1]), square.kernel([1, size])],
        };
        let mut layers = vec![ConvNorm::new(half, Conv2dConfig::same(channels, inner, 1), &vb.pp("ext_conv1"), 0)?];
        for (index, config) in middle.into_iter().enumerate() {
            layers.push(ConvNorm::new(half, config, &vb.pp("ext_conv2"), 3 * index)?);
        }
        layers.push(ConvNorm::new(half, Conv2dConfig::same(inner, channels, 1), &vb.pp("ext_conv3"), 0)?);
        Ok(Self { layers, add: Addition::new(half, dropout, &vb)? })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let extension = self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, mode))?;
        self.add.forward(&extension, x, mode)
    }
}

/// A bottleneck that halves the resolution: the main branch is pooled and filled up with zero channels.
#[derive(Debug)]
struct Downsampling {
    reduce: ConvNorm,
    middle: ConvNorm,
    expand: ConvNorm,
    add: Addition,
    extra_channels: usize,
}

impl Downsampling {
    fn new(in_channels: usize, out_channels: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(in_channels);
        let halving = Conv2dConfig::same(in_channels, inner, 2).stride(2).unpadded();
        let layer = |config, name: &str| ConvNorm::new(Half::Encoder, config, &vb.pp(name), 0);
        Ok(Self {
            reduce: layer(halving, "ext_conv1")?,
            middle: layer(Conv2dConfig::same(inner, inner, 3), "ext_conv2")?,
            expand: layer(Conv2dConfig::same(inner, out_channels, 1), "ext_conv3")?,
            add: Addition::new(Half::Encoder, dropout, &vb)?,
            extra_channels: out_channels - in_channels,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Pooled)> {
        let (_, _, height, width) = x.dims4()?;
        let (main, indices) = dsd_ops::max_pool2d_with_indices(x, HALVING)?;
        let main = dsd_ops::pad_end(&main, 1, self.extra_channels)?;
        let extension = self.middle.forward(&self.reduce.forward(x, mode)?, mode)?;
        let extension = self.expand.forward(&extension, mode)?;
        Ok((self.add.forward(&extension, &main, mode)?, Pooled { indices, size: [height, width] }))
    }
}

/// A bottleneck that restores the resolution before a [`Downsampling`]: the main branch is reduced and put back to
/// where its maxima were.
#[derive(Debug)]
struct Upsampling {
    main: Conv2d,
    main_norm: BatchNorm2d,
    reduce: ConvNorm,
    /// 2×2 with stride 2, `[inner, inner, 2, 2]`.
    double: Tensor,
    double_norm: BatchNorm2d,
    expand: Conv2d,
    expand_norm: BatchNorm2d,
    add: Addition,
}

impl Upsampling {
    fn new(in_channels: usize, out_channels: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let inner = inner_channels(in_channels);
        let (main, expand) = (vb.pp("main_conv1"), vb.pp("ext_conv2"));
        let reduce = Conv2dConfig::same(in_channels, inner, 1);
        Ok(Self {
            main: Conv2d::new(Conv2dConfig::same(in_channels, out_channels, 1), main.pp(0))?,
            main_norm: BatchNorm2d::new(out_channels, main.pp(1))?,
            reduce: ConvNorm::new(Half::Decoder, reduce, &vb.pp("ext_conv1"), 0)?,
            double: vb.pp("ext_tconv1").get_with_hints((inner, inner, 2, 2), "weight", TORCH_CONV)?,
            double_norm: BatchNorm2d::new(inner, vb.pp("ext_tconv1_bnorm"))?,
            expand: Conv2d::new(Conv2dConfig::same(inner, out_channels, 1), expand.pp(0))?,
            expand_norm: BatchNorm2d::new(out_channels, expand.pp(1))?,
            add: Addition::new(Half::Decoder, dropout, &vb)?,
        })
    }

    fn forward(&self, x: &Tensor, pooled: &Pooled, mode: Mode) -> Result<Tensor> {
        let main = self.main_norm.forward(&self.main.forward(x)?, Activation::Identity, mode)?;
        let main = dsd_ops::max_unpool2d(&main, &pooled.indices, pooled.size)?;
        // A row or column that the pooling left out.
        let output_padding = pooled.size.map(|full| full % 2);
        let options = ConvTranspose2dOptions { stride: [2; 2], output_padding, ..Default::default() };
        let doubled = conv_transpose2d(&self.reduce.forward(x, mode)?, &self.double, options)?;
        let doubled = self.double_norm.forward(&doubled, Activation::Relu, mode)?;
        let expanded = self.expand_norm.forward(&self.expand.forward(&doubled)?, Activation::Identity, mode)?;
        self.add.forward(&expanded, &main, mode)
    }
}
