//! ESPNet-C and ESPNet, networks of 0.35 and 0.36 M parameters built from spatial pyramids of dilated convolutions.
//!
//! Source: Mehta et al., ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation, ECCV 2018,
//! fig. 1, 2 and 4. Parameter names, the small number in normalisation and every layer are those of the authors' code
//! (sacmehta/ESPNet), whose checkpoints load as they are; with 20 classes both have 349 449 and 364 569 parameters.
//! Where that code leaves a choice or fails:
//! - its Cityscapes decoders take the first level's feature as it is, its CamVid decoder and its training code take it
//!   together with the pooled image: [`EspnetConfig::image_in_decoder`];
//! - its decoder only works where the image can be halved three times; here an odd size is rounded up when halved, as
//!   its encoder does it, and every upsampling restores the size that its halving saw by leaving out the row and column
//!   that are too many;
//! - its decoder has as many channels as classes and a pyramid of five branches in them; with fewer than five classes
//!   the decoder has five channels here, up to its last layer.
//!
//! Logits, all gradients and running statistics agree with that code in f64.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::{Activation, ConvTranspose2dOptions, PoolOptions};
use serde::{Deserialize, Serialize};

use crate::backbone::scaled;
use crate::enet::NormPRelu;
use crate::init::TORCH_CONV;
use crate::layers::{BatchNorm2d, Conv2d, Conv2dConfig, conv_transpose2d};
use crate::{Error, Feature, Mode, Output, Result, Segmenter};

/// Settings of [`Espnet`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EspnetConfig {
    /// All channel counts of the encoder are multiplied by this and rounded; the paper has 1.
    pub width: f64,
    /// Whether there is the light decoder (ESPNet, logits at stride 1) or only the encoder (ESPNet-C, stride 8).
    pub decoder: bool,
    /// α₂ of the paper: how many pyramids follow the halving to stride 4, 1 to 64.
    pub p: usize,
    /// α₃ of the paper: how many pyramids follow the halving to stride 8, 1 to 64.
    pub q: usize,
    /// Whether the decoder's last step also sees the pooled image: the authors' CamVid weights and training code (true)
    /// or their Cityscapes weights (false). ESPNet-C does not use it.
    pub image_in_decoder: bool,
}

impl Default for EspnetConfig {
    fn default() -> Self {
        // The largest network of the paper and the form of its Cityscapes weights.
        Self { width: 1.0, decoder: true, p: 2, q: 8, image_in_decoder: false }
    }
}

/// Channels of the three levels; the second and third are widened twofold by concatenation.
const CHANNELS: [usize; 3] = [16, 64, 128];
/// The most pyramids of a level; the paper has up to 8.
const MAX_DEPTH: usize = 64;
/// Channels of an image.
const IMAGE: usize = 3;
/// A pyramid's branches: their names and dilations.
const BRANCHES: [(&str, usize); 5] = [("d1", 1), ("d2", 2), ("d4", 4), ("d8", 8), ("d16", 16)];
/// Added to a variance before its root in the authors' code.
const EPS: f64 = 1e-3;
/// The pooling of input reinforcement: 3×3 with stride 2, rounded up. Zeros beyond the border count.
const POOLING: PoolOptions = PoolOptions { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil_mode: false };

/// ESPNet-C or ESPNet. Features `stage1` (stride 2), `stage2` (4) and `stage3` (8) of the encoder, with the decoder also
/// `stage4` (4) and `stage5` (2), then `head` (the same as the last stage) and `logits` (8, with the decoder 1).
#[derive(Debug)]
pub struct Espnet {
    encoder: Encoder,
    decoder: Option<Decoder>,
}

impl Espnet {
    /// The network whose parameters `vb` holds. The encoder's lie below `encoder.` where there is a decoder, and at the
    /// root where there is none.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &EspnetConfig, num_classes: usize, vb: VarBuilder) -> Result<Self> {
        if !config.decoder {
            return Ok(Self { encoder: Encoder::new(config, num_classes, &vb)?, decoder: None });
        }
        let channels = num_classes.max(BRANCHES.len());
        let encoder = Encoder::new(config, channels, &vb.pp("encoder"))?;
        let decoder = Decoder::new(config, &encoder, channels, num_classes, &vb)?;
        Ok(Self { encoder, decoder: Some(decoder) })
    }
}

impl Segmenter for Espnet {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Output> {
        let (_, _, height, width) = dsd_ops::check::nchw("espnet", "images", images)?;
        let levels = self.encoder.forward(images, mode)?;
        let mut features = vec![
            Feature::new("stage1", 2, levels.stage1.clone()),
            Feature::new("stage2", 4, levels.stage2.clone()),
            Feature::new("stage3", 8, levels.stage3.clone()),
        ];
        let logits = match &self.decoder {
            Some(decoder) => {
                let (stage4, stage5, logits) = decoder.forward(&levels, [height, width], mode)?;
                features.push(Feature::new("stage4", 4, stage4));
                features.push(Feature::new("stage5", 2, stage5.clone()));
                features.push(Feature::new("head", 2, stage5));
                features.push(Feature::new("logits", 1, logits.clone()));
                logits
            }
            None => {
                features.push(Feature::new("head", 8, levels.stage3));
                features.push(Feature::new("logits", 8, levels.logits.clone()));
                levels.logits
            }
        };
        Ok(Output { logits, aux_logits: None, features })
    }
}

/// What the encoder gives: the features before each halving, and the logits at stride 8.
struct Levels {
    /// The first convolution alone, `[N,16,H/2,W/2]`.
    first: Tensor,
    /// Together with the pooled image, `[N,19,H/2,W/2]`.
    stage1: Tensor,
    /// `[N,131,H/4,W/4]`.
    stage2: Tensor,
    /// `[N,256,H/8,W/8]`.
    stage3: Tensor,
    /// `[N,classes,H/8,W/8]`.
    logits: Tensor,
}

/// ESPNet-C.
#[derive(Debug)]
struct Encoder {
    first: Conv2d,
    first_norm: NormPRelu,
    norm1: NormPRelu,
    down2: Pyramid,
    level2: Vec<Pyramid>,
    norm2: NormPRelu,
    down3: Pyramid,
    level3: Vec<Pyramid>,
    norm3: NormPRelu,
    classify: Conv2d,
    channels: [usize; 3],
}

impl Encoder {
    fn new(config: &EspnetConfig, num_classes: usize, vb: &VarBuilder) -> Result<Self> {
        for (field, depth) in [("p", config.p), ("q", config.q)] {
            if !(1..=MAX_DEPTH).contains(&depth) {
                return Err(Error::config(field, format!("1 to {MAX_DEPTH}"), depth));
            }
        }
        let [first, second, third] = CHANNELS.map(|channels| scaled(channels, config.width));
        let (first, second, third) = (first?, second?, third?);
        if second < BRANCHES.len() {
            return Err(Error::config("width", "large enough for the five branches of a pyramid", config.width));
        }
        let level = |name: &str, depth: usize, channels: usize| -> Result<Vec<_>> {
            (0..depth).map(|index| Pyramid::new(channels, channels, vb.pp(format!("{name}.{index}")))).collect()
        };
        let channels = [first + IMAGE, 2 * second + IMAGE, 2 * third];
        let level1 = vb.pp("level1");
        Ok(Self {
            first: Conv2d::new(Conv2dConfig::same(IMAGE, first, 3).stride(2), level1.pp("conv"))?,
            first_norm: norm_prelu(first, &level1)?,
            norm1: norm_prelu(channels[0], &vb.pp("b1"))?,
            down2: Pyramid::halving(channels[0], second, vb.pp("level2_0"))?,
            level2: level("level2", config.p, second)?,
            norm2: norm_prelu(channels[1], &vb.pp("b2"))?,
            down3: Pyramid::halving(channels[1], third, vb.pp("level3_0"))?,
            level3: level("level3", config.q, third)?,
            norm3: norm_prelu(channels[2], &vb.pp("b3"))?,
            classify: Conv2d::new(Conv2dConfig::same(channels[2], num_classes, 1), vb.pp("classifier.conv"))?,
            channels,
        })
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Levels> {
        let residual = |pyramids: &[Pyramid], x: &Tensor| {
            pyramids
                .iter()
                .try_fold(x.clone(), |x, pyramid| pyramid.normalised(&dsd_ops::add(&x, &pyramid.merged(&x)?)?, mode))
        };
        let pooled1 = dsd_ops::avg_pool2d(images, POOLING, true)?;
        let pooled2 = dsd_ops::avg_pool2d(&pooled1, POOLING, true)?;

        let first = self.first_norm.forward(&self.first.forward(images)?, mode)?; // [N,16,H/2,W/2]
        let stage1 = self.norm1.forward(&dsd_ops::concat(&[&first, &pooled1], 1)?, mode)?; // [N,19,H/2,W/2]
        let down2 = self.down2.forward(&stage1, mode)?; // [N,64,H/4,W/4]
        let level2 = residual(&self.level2, &down2)?;
        let stage2 = self.norm2.forward(&dsd_ops::concat(&[&level2, &down2, &pooled2], 1)?, mode)?; // [N,131,H/4,W/4]
        let down3 = self.down3.forward(&stage2, mode)?; // [N,128,H/8,W/8]
        let level3 = residual(&self.level3, &down3)?;
        let stage3 = self.norm3.forward(&dsd_ops::concat(&[&down3, &level3], 1)?, mode)?; // [N,256,H/8,W/8]
        let logits = self.classify.forward(&stage3)?;
        Ok(Levels { first, stage1, stage2, stage3, logits })
    }
}

/// The light decoder: every step doubles the resolution and merges it with what the encoder had there.
#[derive(Debug)]
struct Decoder {
    norm: BatchNorm2d,
    up3: Doubling,
    project2: Conv2d,
    merge2_norm: NormPRelu,
    merge2: Pyramid,
    up2: Doubling,
    up2_norm: NormPRelu,
    merge1: Conv2d,
    merge1_norm: NormPRelu,
    up1: Doubling,
    image_in_decoder: bool,
}

impl Decoder {
    fn new(
        config: &EspnetConfig,
        encoder: &Encoder,
        channels: usize,
        num_classes: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let [first, second, _] = encoder.channels;
        let image_in_decoder = config.image_in_decoder;
        let first = if image_in_decoder { first } else { first - IMAGE };
        let (merge2, up2, merge1) = (vb.pp("combine_l2_l3"), vb.pp("up_l2"), vb.pp("conv"));
        Ok(Self {
            norm: BatchNorm2d::new(channels, vb.pp("br"))?.with_eps(EPS),
            up3: Doubling::new(channels, channels, vb.pp("up_l3.0"))?,
            project2: Conv2d::new(Conv2dConfig::same(second, channels, 1), vb.pp("level3_C.conv"))?,
            merge2_norm: norm_prelu(2 * channels, &merge2.pp("0"))?,
            merge2: Pyramid::new(2 * channels, channels, merge2.pp("1"))?,
            up2: Doubling::new(channels, channels, up2.pp("0"))?,
            up2_norm: norm_prelu(channels, &up2.pp("1"))?,
            merge1: Conv2d::new(Conv2dConfig::same(first + channels, channels, 3), merge1.pp("conv"))?,
            merge1_norm: norm_prelu(channels, &merge1)?,
            up1: Doubling::new(channels, num_classes, vb.pp("classifier"))?,
            image_in_decoder,
        })
    }

    /// `stage4`, `stage5` and the logits.
    fn forward(&self, levels: &Levels, size: [usize; 2], mode: Mode) -> Result<(Tensor, Tensor, Tensor)> {
        let size_of = |x: &Tensor| -> Result<_> { Ok(x.dims4().map(|(_, _, height, width)| [height, width])?) };
        let Levels { stage1, stage2, .. } = levels;

        let coarse = self.norm.forward(&levels.logits, Activation::Identity, mode)?;
        let up3 = self.up3.forward(&coarse, size_of(stage2)?)?; // [N,classes,H/4,W/4]
        let projected = self.project2.forward(stage2)?;
        let merged = self.merge2_norm.forward(&dsd_ops::concat(&[&projected, &up3], 1)?, mode)?;
        let stage4 = self.merge2.forward(&merged, mode)?; // [N,classes,H/4,W/4]
        let up2 = self.up2_norm.forward(&self.up2.forward(&stage4, size_of(stage1)?)?, mode)?; // [N,classes,H/2,W/2]
        let first = if self.image_in_decoder { stage1 } else { &levels.first };
        let merged = self.merge1.forward(&dsd_ops::concat(&[&up2, first], 1)?)?;
        let stage5 = self.merge1_norm.forward(&merged, mode)?; // [N,classes,H/2,W/2]
        let logits = self.up1.forward(&stage5, size)?; // [N,classes,H,W]
        Ok((stage4, stage5, logits))
    }
}

fn norm_prelu(channels: usize, vb: &VarBuilder) -> Result<NormPRelu> {
    Ok(NormPRelu::new(channels, vb.pp("bn"), vb.pp("act"))?.with_eps(EPS))
}

/// The efficient spatial pyramid: a convolution that reduces the channels to a fifth, dilated convolutions side by side,
/// hierarchical fusion of their results, normalisation.
#[derive(Debug)]
struct Pyramid {
    reduce: Conv2d,
    branches: Vec<Conv2d>,
    norm: NormPRelu,
}

impl Pyramid {
    /// At least five output channels.
    fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let norm = norm_prelu(out_channels, &vb.pp("bn"))?;
        Self::with_norm(Conv2dConfig::same(in_channels, out_channels / BRANCHES.len(), 1), out_channels, norm, &vb)
    }

    /// The same with a first convolution of 3×3 and stride 2.
    fn halving(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let reduce = Conv2dConfig::same(in_channels, out_channels / BRANCHES.len(), 3).stride(2);
        Self::with_norm(reduce, out_channels, norm_prelu(out_channels, &vb)?, &vb)
    }

    fn with_norm(reduce: Conv2dConfig, out_channels: usize, norm: NormPRelu, vb: &VarBuilder) -> Result<Self> {
        let inner = reduce.out_channels;
        let branches = BRANCHES.iter().map(|&(name, dilation)| {
            // The first branch takes what the division by five leaves over.
            let channels = if dilation == 1 { out_channels - (BRANCHES.len() - 1) * inner } else { inner };
            let config = Conv2dConfig::same(inner, channels, 3).dilation(dilation);
            Conv2d::new(config, vb.pp(name).pp("conv"))
        });
        let branches = branches.collect::<Result<_>>()?;
        Ok(Self { reduce: Conv2d::new(reduce, vb.pp("c1.conv"))?, branches, norm })
    }

    /// Without normalisation. From the third branch on, each is added to the sum of those before it: the sums of
    /// neighbouring dilations have no grid of unseen pixels.
    fn merged(&self, x: &Tensor) -> Result<Tensor> {
        let reduced = self.reduce.forward(x)?;
        let mut merged: Vec<Tensor> = Vec::with_capacity(self.branches.len());
        for (index, branch) in self.branches.iter().enumerate() {
            let own = branch.forward(&reduced)?;
            let sum = match merged.last() {
                Some(sum) if index >= 2 => dsd_ops::add(sum, &own)?,
                _ => own,
            };
            merged.push(sum);
        }
        Ok(dsd_ops::concat(&merged, 1)?)
    }

    fn normalised(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward(x, mode)
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.normalised(&self.merged(x)?, mode)
    }
}

/// A transposed convolution that undoes a halving (rounded up) of the size: kernel 2×2, stride 2, no bias.
#[derive(Debug)]
struct Doubling {
    weight: Tensor,
}

impl Doubling {
    fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints((in_channels, out_channels, 2, 2), "weight", TORCH_CONV)? })
    }

    /// `[N,in,h,w]` → `[N,out,H,W]`, where h = ⌈H/2⌉ and w = ⌈W/2⌉.
    fn forward(&self, x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
        let options = ConvTranspose2dOptions { stride: [2; 2], ..Default::default() };
        let doubled = conv_transpose2d(x, &self.weight, options)?;
        Ok(dsd_ops::first(&dsd_ops::first(&doubled, 2, size[0])?, 3, size[1])?)
    }
}
