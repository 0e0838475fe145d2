//! The critic of the holistic distillation term: from logits to scores of how much they look like the teacher's.
//!
//! Batch normalisation, then convolutions 4×4 with stride 2, spectral normalisation and leaky ReLU, the last ones followed
//! by self-attention, then a convolution 4×4 to one channel.
//!
//! Source: Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019, section 3.2, and the
//! authors' `networks/sagan_models.py`; the blocks are those of Zhang et al., SAGAN, ICML 2019. Differs: the vectors of the
//! power iteration are found anew in each pass instead of being carried on, so that nothing but parameters is saved.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use dsd_ops::{Activation, Conv2dOptions, check, conv2d, prelu, softmax_channels};
use dsd_random::{Stream, name_hash};

use crate::layers::{BatchNorm2d, Conv2d, Conv2dConfig};
use crate::{Error, Mode, Result, init};

/// The slope of the leaky ReLU for negative values, from the authors' code.
const LEAK: f64 = 0.1;
/// Side of the convolutions, from the authors' code.
const KERNEL: usize = 4;
/// Channels of queries and keys are this part of a feature's, from the authors' code.
const QUERY_SHARE: usize = 8;
/// Steps of the power iteration, from a fixed start. The authors take one per pass and carry the vectors on.
const POWER_STEPS: usize = 12;

/// The sizes of a [`Discriminator`]. No `Default`: take a named one, or say all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscriminatorConfig {
    /// Channels of the input: the number of classes.
    pub in_channels: usize,
    /// Output channels of each halving stage, at least one.
    pub widths: Vec<usize>,
    /// How many of the last stages are followed by self-attention; their widths are multiples of 8.
    pub attention: usize,
}

impl DiscriminatorConfig {
    /// The authors': 64, 128, 256, 512 channels, attention after the last two; logits of at least 64 × 64.
    #[must_use]
    pub fn published(in_channels: usize) -> Self {
        Self { in_channels, widths: vec![64, 128, 256, 512], attention: 2 }
    }

    /// For logits of at least 32 × 32: the same without its last stage.
    #[must_use]
    pub fn small(in_channels: usize) -> Self {
        Self { in_channels, widths: vec![64, 128, 256], attention: 1 }
    }

    /// The least height and width of the input, pixels.
    #[must_use]
    pub fn least_size(&self) -> usize {
        KERNEL << self.widths.len()
    }
}

/// The critic network; its losses are `adversarial_critic` and `adversarial_student` of `dsd_similarity`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use dsd_models::{Discriminator, DiscriminatorConfig, Mode, ParamStore};
/// # fn main() -> dsd_models::Result<()> {
/// let store = ParamStore::new(1, DType::F32, &Device::Cpu);
/// let critic = Discriminator::new(&DiscriminatorConfig::small(11), store.builder())?;
/// let logits = Tensor::zeros((1, 11, 32, 48), DType::F32, &Device::Cpu)?;
/// assert_eq!(critic.forward(&logits, Mode::Eval)?.dims(), [1, 1, 1, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Discriminator {
    norm: BatchNorm2d,
    stages: Vec<Stage>,
    score: Conv2d,
    least_size: usize,
}

#[derive(Debug)]
struct Stage {
    conv: SpectralConv2d,
    attention: Option<SelfAttention>,
}

impl Discriminator {
    /// Parameters `norm.*`, `stages.I.conv.{weight,bias}`, `stages.I.attention.{query,key,value}.{weight,bias}` and
    /// `.gamma`, `score.{weight,bias}`.
    ///
    /// # Errors
    /// No stage, more attention than stages, a width with attention that is no multiple of 8; a parameter of another
    /// shape.
    pub fn new(config: &DiscriminatorConfig, vb: VarBuilder) -> Result<Self> {
        let DiscriminatorConfig { in_channels, ref widths, attention } = *config;
        let Some(&last) = widths.last() else { return Err(Error::config("widths", "at least one stage", 0)) };
        if attention > widths.len() {
            return Err(Error::config("attention", format!("at most {} stages", widths.len()), attention));
        }
        let mut channels = in_channels;
        let mut stages = Vec::with_capacity(widths.len());
        for (index, &width) in widths.iter().enumerate() {
            let vb = vb.pp("stages").pp(index);
            let conv = SpectralConv2d::new(channels, width, vb.pp("conv"))?;
            let attends = index + attention >= widths.len();
            let attention = if attends { Some(SelfAttention::new(width, vb.pp("attention"))?) } else { None };
            stages.push(Stage { conv, attention });
            channels = width;
        }
        let score = Conv2dConfig::same(last, 1, KERNEL).unpadded().bias();
        Ok(Self {
            norm: BatchNorm2d::new(in_channels, vb.pp("norm"))?,
            stages,
            score: Conv2d::new(score, vb.pp("score"))?,
            least_size: config.least_size(),
        })
    }

    /// Logits `[N,K,H,W]` → scores `[N,1,H',W']`, unbounded; H' is about H / 2^stages − 3.
    ///
    /// A gradient reaches the logits as well: detach them for the critic's own step.
    ///
    /// # Errors
    /// An input below the least size; those of the layers.
    pub fn forward(&self, logits: &Tensor, mode: Mode) -> Result<Tensor> {
        let (_, _, height, width) = check::nchw("discriminator", "logits", logits)?;
        if height.min(width) < self.least_size {
            let least = self.least_size;
            return Err(
                check::shape("discriminator", "logits", format!("at least {least}×{least} pixels"), logits).into()
            );
        }
        let mut x = self.norm.forward(logits, Activation::Identity, mode)?;
        for stage in &self.stages {
            x = leaky(&stage.conv.forward(&x)?)?;
            if let Some(attention) = &stage.attention {
                x = attention.forward(&x)?;
            }
        }
        self.score.forward(&x)
    }
}

fn leaky(x: &Tensor) -> Result<Tensor> {
    let slope = Tensor::new(&[LEAK], x.device())?.to_dtype(x.dtype())?;
    Ok(prelu(x, &slope)?)
}

/// A convolution 4×4, stride 2, whose weight, as a matrix of outputs × the rest, is divided by its greatest singular value.
#[derive(Debug)]
struct SpectralConv2d {
    weight: Tensor,
    bias: Tensor,
    /// Where the power iteration starts, `[1,out]`.
    start: Tensor,
}

impl SpectralConv2d {
    fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((out_channels, in_channels, KERNEL, KERNEL), "weight", init::TORCH_CONV)?;
        let bias = vb.get_with_hints(out_channels, "bias", init::torch_bias(in_channels * KERNEL * KERNEL))?;
        let mut stream = Stream::new(0, "spectral", 0, name_hash(&vb.prefix()));
        let start: Vec<f64> = (0..out_channels).map(|_| stream.normal()).collect();
        let start = Tensor::from_vec(start, (1, out_channels), weight.device())?.to_dtype(weight.dtype())?;
        Ok(Self { weight, bias, start })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let options = Conv2dOptions { stride: [2; 2], padding: [1; 2], ..Conv2dOptions::default() };
        let weight = self.weight.broadcast_div(&self.greatest_singular_value()?)?;
        Ok(conv2d(x, &weight, Some(&self.bias), options)?)
    }

    /// σ = u · W · v; u and v are constants for the gradient, which is then that of σ.
    fn greatest_singular_value(&self) -> Result<Tensor> {
        let matrix = self.weight.flatten_from(1)?; // [out,rest]
        let plain = matrix.detach();
        let transposed = plain.t()?.contiguous()?;
        let mut u = direction(&self.start)?;
        let mut v = direction(&u.matmul(&plain)?)?; // [1,rest]
        for _ in 0..POWER_STEPS {
            u = direction(&v.matmul(&transposed)?)?;
            v = direction(&u.matmul(&plain)?)?;
        }
        let sigma = (u.matmul(&matrix)? * v)?.sum_all()?;
        // A weight of zero has no direction and no scale.
        let zero = sigma.detach().le(f64::from(f32::MIN_POSITIVE))?.to_dtype(sigma.dtype())?;
        Ok((sigma + zero)?)
    }
}

/// A row divided by its length; zeros stay zeros.
fn direction(row: &Tensor) -> Result<Tensor> {
    let length = row.sqr()?.sum_keepdim(1)?.sqrt()?;
    Ok(row.broadcast_div(&(length + f64::from(f32::MIN_POSITIVE))?)?)
}

/// x + γ · the average of all places' values, weighted by how well their keys fit the place's query; γ begins at 0.
#[derive(Debug)]
struct SelfAttention {
    query: Conv2d,
    key: Conv2d,
    value: Conv2d,
    gamma: Tensor,
}

impl SelfAttention {
    fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        if channels == 0 || !channels.is_multiple_of(QUERY_SHARE) {
            return Err(Error::config("widths", "multiples of 8 where there is attention", channels));
        }
        let to = |out: usize| Conv2dConfig::same(channels, out, 1).bias();
        Ok(Self {
            query: Conv2d::new(to(channels / QUERY_SHARE), vb.pp("query"))?,
            key: Conv2d::new(to(channels / QUERY_SHARE), vb.pp("key"))?,
            value: Conv2d::new(to(channels), vb.pp("value"))?,
            gamma: vb.get_with_hints(1, "gamma", Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let places = |y: Tensor| -> Result<Tensor> { Ok(y.flatten_from(2)?.contiguous()?) };
        let query = places(self.query.forward(x)?)?.transpose(1, 2)?.contiguous()?; // [N,P,C/8]
        let key = places(self.key.forward(x)?)?; // [N,C/8,P]
        let energy = query.matmul(&key)?.reshape((n * h * w, h * w))?; // a row per place
        let weights = softmax_channels(&energy)?.reshape((n, h * w, h * w))?;
        let value = places(self.value.forward(x)?)?; // [N,C,P]
        let mixed = value.matmul(&weights.transpose(1, 2)?.contiguous()?)?.reshape((n, c, h, w))?;
        Ok((x + mixed.broadcast_mul(&self.gamma.reshape((1, 1, 1, 1))?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use dsd_ops::gradcheck::check_gradients;

    use super::*;
    use crate::ParamStore;

    fn normal(name: &str, shape: &[usize]) -> Tensor {
        let mut stream = Stream::new(3, name, 0, 0);
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| stream.normal()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn critic(config: &DiscriminatorConfig, dtype: DType) -> (Discriminator, ParamStore) {
        let store = ParamStore::new(5, dtype, &Device::Cpu);
        (Discriminator::new(config, store.builder()).unwrap(), store)
    }

    #[test]
    fn shapes_and_the_number_of_parameters_are_the_published_ones() {
        let config = DiscriminatorConfig::published(19);
        let (critic, store) = critic(&config, DType::F32);
        let scores = critic.forward(&Tensor::zeros((1, 19, 64, 128), DType::F32, &Device::Cpu).unwrap(), Mode::Eval);
        assert_eq!(scores.unwrap().dims(), [1, 1, 1, 5]);
        let convolutions = 16 * (19 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 64 + 128 + 256 + 512;
        let attention = |c: usize| 2 * (c * c / 8 + c / 8) + c * c + c + 1;
        let expected = 2 * 19 + convolutions + attention(256) + attention(512) + 16 * 512 + 1;
        assert_eq!(store.parameter_count(), expected);
    }

    #[test]
    fn the_divided_weight_has_a_greatest_singular_value_of_about_one() {
        let store = ParamStore::new(5, DType::F64, &Device::Cpu);
        let conv = SpectralConv2d::new(3, 6, store.builder()).unwrap();
        let weight = conv.weight.broadcast_div(&conv.greatest_singular_value().unwrap()).unwrap();
        let matrix = weight.detach().flatten_from(1).unwrap();
        // WWᵀ to the 64th power: its trace to the 1/64 lies between σ² and 6^(1/64)·σ².
        let mut power = matrix.matmul(&matrix.t().unwrap().contiguous().unwrap()).unwrap();
        for _ in 0..6 {
            power = power.matmul(&power).unwrap();
        }
        let diagonal = (power * Tensor::eye(6, DType::F64, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        let greatest = diagonal.to_scalar::<f64>().unwrap().powf(1.0 / 128.0);
        assert!((0.99..1.03).contains(&greatest), "{greatest}");
    }

    #[test]
    fn gradients_reach_the_logits_and_every_parameter() {
        let config = DiscriminatorConfig { in_channels: 2, widths: vec![8], attention: 1 };
        let (critic, store) = critic(&config, DType::F64);
        // γ begins at 0, where queries, keys and values have no gradient.
        let mut tensors = store.tensors();
        tensors.insert("stages.0.attention.gamma".to_string(), Tensor::new(&[0.7f64], &Device::Cpu).unwrap());
        store.apply(&tensors).unwrap();
        let mode = Mode::Train { seed: 1, step: 0 };
        let logits = normal("logits", &[2, 2, 9, 11]);
        let gradients = critic.forward(&logits, mode).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for parameter in store.parameters() {
            let gradient = gradients.get(&parameter.var).unwrap().sqr().unwrap().sum_all().unwrap();
            let size = gradient.to_scalar::<f64>().unwrap();
            // A softmax does not change with a number added to all keys of a query's row.
            let still = parameter.name.ends_with("key.bias");
            assert!(size.is_finite() && (size > 1e-20) != still, "{}: {size}", parameter.name);
        }
        check_gradients("discriminator, evaluating", &[logits], |x| {
            critic.forward(&x[0], Mode::Eval).map_err(candle_core::Error::wrap)
        })
        .unwrap();
    }

    #[test]
    fn the_gradient_of_the_division_is_that_of_the_greatest_singular_value() {
        // One output channel: the singular value is the length of the row, found exactly.
        let weight = normal("weight", &[1, 2, 4, 4]);
        let x = normal("x", &[1, 2, 8, 6]);
        check_gradients("spectral convolution", &[weight], |weight| {
            let start = Tensor::ones((1, 1), DType::F64, &Device::Cpu)?;
            let bias = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
            let conv = SpectralConv2d { weight: weight[0].clone(), bias, start };
            conv.forward(&x).map_err(candle_core::Error::wrap)
        })
        .unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let builder = || ParamStore::new(1, DType::F32, &Device::Cpu).builder();
        let refused = |config: &DiscriminatorConfig| Discriminator::new(config, builder()).unwrap_err().to_string();
        let config = DiscriminatorConfig { in_channels: 3, widths: Vec::new(), attention: 0 };
        assert!(refused(&config).contains("at least one stage"), "{}", refused(&config));
        let config = DiscriminatorConfig { in_channels: 3, widths: vec![12], attention: 1 };
        assert!(refused(&config).contains("multiples of 8"), "{}", refused(&config));
        let (critic, _) = critic(&DiscriminatorConfig::small(3), DType::F32);
        let small = Tensor::zeros((1, 3, 31, 64), DType::F32, &Device::Cpu).unwrap();
        let message = critic.forward(&small, Mode::Eval).unwrap_err().to_string();
        assert!(message.contains("at least 32×32 pixels"), "{message}");
    }
}
