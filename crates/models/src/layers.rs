//! The layers that networks are made of: parameters by name, arithmetic in `dsd_ops`.
//!
//! candle-nn's own layers are not used: several of their gradients are wrong or missing for training.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use dsd_ops::{Activation, Conv2dOptions, ConvTranspose2dOptions, RunningStatistics};
use dsd_random::{Stream, name_hash};

use crate::finite::look;
use crate::multiply_adds::{Convolution, counted, is_counting};
use crate::{Error, Mode, Result, init};

/// The momentum of running statistics: PyTorch's default.
const BATCH_NORM_MOMENTUM: f64 = 0.1;
/// Added to a variance before its root: PyTorch's default.
const BATCH_NORM_EPS: f64 = 1e-5;
/// The initial slope of PReLU: PyTorch's default.
const PRELU_SLOPE: f64 = 0.25;

/// The sizes of a convolution, and how its weights begin.
#[derive(Clone, Copy, Debug)]
pub struct Conv2dConfig {
    /// Channels that come in.
    pub in_channels: usize,
    /// Channels that go out.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Stride, padding, dilation, groups.
    pub options: Conv2dOptions,
    /// TensorFlow's "SAME": the padding follows from the size of the input, what is odd goes to the end; `padding` of
    /// the options is not used.
    pub tensorflow_same: bool,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether the bias begins at 0; PyTorch's initial bias otherwise.
    pub zero_bias: bool,
    /// Initial weights.
    pub weights: Init,
}

impl Conv2dConfig {
    /// A square kernel with the padding that keeps the size at stride 1 (`kernel` odd), no bias, PyTorch's initial
    /// weights.
    #[must_use]
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let options = Conv2dOptions { padding: [kernel / 2; 2], ..Conv2dOptions::default() };
        Self {
            in_channels,
            out_channels,
            kernel: [kernel; 2],
            options,
            tensorflow_same: false,
            bias: false,
            zero_bias: false,
            weights: init::TORCH_CONV,
        }
    }

    /// The same with this stride on both axes.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.options.stride = [stride; 2];
        self
    }

    /// The same with this dilation on both axes, and the padding that keeps the size at stride 1.
    #[must_use]
    pub fn dilation(mut self, dilation: usize) -> Self {
        self.options.dilation = [dilation; 2];
        self.options.padding = [dilation * (self.kernel[0] / 2), dilation * (self.kernel[1] / 2)];
        self
    }

    /// The same with a kernel of this height and width, and the padding that keeps the size at stride 1.
    #[must_use]
    pub fn kernel(mut self, kernel: [usize; 2]) -> Self {
        self.kernel = kernel;
        let dilation = self.options.dilation;
        self.options.padding = [dilation[0] * (kernel[0] / 2), dilation[1] * (kernel[1] / 2)];
        self
    }

    /// The same without padding.
    #[must_use]
    pub fn unpadded(mut self) -> Self {
        self.options.padding = [0; 2];
        self
    }

    /// The same in this many groups of channels; as many as input channels is a depthwise convolution.
    #[must_use]
    pub fn groups(mut self, groups: usize) -> Self {
        self.options.groups = groups;
        self
    }

    /// The same with TensorFlow's "SAME" padding.
    #[must_use]
    pub fn tensorflow_same(mut self) -> Self {
        self.tensorflow_same = true;
        self
    }

    /// The same with a bias.
    #[must_use]
    pub fn bias(mut self) -> Self {
        self.bias = true;
        self
    }

    /// The same with a bias that begins at 0.
    #[must_use]
    pub fn zero_bias(mut self) -> Self {
        (self.bias, self.zero_bias) = (true, true);
        self
    }

    /// The same with initial weights as in torchvision's ResNets: Kaiming normal by fan-out.
    #[must_use]
    pub fn kaiming_fan_out(mut self) -> Self {
        self.weights = init::KAIMING_FAN_OUT;
        self
    }
}

/// A convolution: parameters `weight` `[out, in / groups, kh, kw]` and, if asked for, `bias` `[out]`.
#[derive(Debug)]
pub struct Conv2d {
    path: String,
    weight: Tensor,
    bias: Option<Tensor>,
    kernel: [usize; 2],
    options: Conv2dOptions,
    tensorflow_same: bool,
}

impl Conv2d {
    /// The convolution whose parameters `vb` holds.
    ///
    /// # Errors
    /// A channel count that the groups do not divide; a parameter of another shape.
    pub fn new(config: Conv2dConfig, vb: VarBuilder) -> Result<Self> {
        let Conv2dConfig { in_channels, out_channels, kernel, options, tensorflow_same, .. } = config;
        let [height, width] = kernel;
        if options.groups == 0 || in_channels % options.groups != 0 || out_channels % options.groups != 0 {
            let expected = format!("a divisor of {in_channels} and {out_channels}");
            return Err(Error::config("groups", expected, options.groups));
        }
        let group_channels = in_channels / options.groups;
        let weight = vb.get_with_hints((out_channels, group_channels, height, width), "weight", config.weights)?;
        let fan_in = group_channels * height * width;
        let bias = match config.bias {
            true => {
                let initial = if config.zero_bias { Init::Const(0.0) } else { init::torch_bias(fan_in) };
                Some(vb.get_with_hints(out_channels, "bias", initial)?)
            }
            false => None,
        };
        Ok(Self { path: vb.prefix(), weight, bias, kernel, options, tensorflow_same })
    }

    /// `[N,in,H,W]` → `[N,out,H',W']`.
    ///
    /// # Errors
    /// Those of [`dsd_ops::conv2d`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut options = self.options;
        if self.tensorflow_same {
            let (_, _, height, width) = dsd_ops::check::nchw("conv2d", "x", x)?;
            for (axis, size) in [height, width].into_iter().enumerate() {
                let reach = (self.kernel[axis] - 1) * options.dilation[axis] + 1;
                let last = (size.div_ceil(options.stride[axis]) - 1) * options.stride[axis];
                let total = (last + reach).saturating_sub(size);
                options.padding[axis] = total / 2;
                options.extra_padding[axis] = total % 2;
            }
        }
        if is_counting() {
            return self.count(x, options);
        }
        let output = dsd_ops::conv2d(x, &self.weight, self.bias.as_ref(), options)?;
        look(&self.path, &output)?;
        Ok(output)
    }

    fn count(&self, x: &Tensor, options: Conv2dOptions) -> Result<Tensor> {
        let (batch, in_channels, height, width) = dsd_ops::check::nchw("conv2d", "x", x)?;
        let Conv2dOptions { stride, padding, extra_padding, dilation, groups } = options;
        let (out_channels, group_channels, ..) = self.weight.dims4()?;
        if in_channels != group_channels * groups {
            let expected = format!("{} channels", group_channels * groups);
            return Err(dsd_ops::check::shape("conv2d", "x", expected, x).into());
        }
        let side = |axis: usize, size: usize| {
            let reach = (self.kernel[axis] - 1) * dilation[axis] + 1;
            (size + 2 * padding[axis] + extra_padding[axis]).saturating_sub(reach) / stride[axis] + 1
        };
        let (input, output) =
            ([batch, in_channels, height, width], [batch, out_channels, side(0, height), side(1, width)]);
        counted(Convolution { input, output, kernel: self.kernel, options }, output, x.dtype())
    }
}

/// A transposed convolution without bias, counted where its multiply-adds are.
///
/// # Errors
/// Those of [`dsd_ops::conv_transpose2d`].
pub(crate) fn conv_transpose2d(x: &Tensor, weight: &Tensor, options: ConvTranspose2dOptions) -> Result<Tensor> {
    if is_counting() {
        let (batch, in_channels, height, width) = dsd_ops::check::nchw("conv_transpose2d", "x", x)?;
        let (_, group_channels, kernel_height, kernel_width) = weight.dims4()?;
        let ConvTranspose2dOptions { stride, padding, output_padding, dilation, groups } = options;
        let side = |axis: usize, size: usize, kernel: usize| {
            let full = (size - 1) * stride[axis] + (kernel - 1) * dilation[axis] + 1 + output_padding[axis];
            full.saturating_sub(2 * padding[axis])
        };
        let kernel = [kernel_height, kernel_width];
        let input = [batch, group_channels * groups, side(0, height, kernel[0]), side(1, width, kernel[1])];
        let options = Conv2dOptions { stride, padding, dilation, groups, ..Conv2dOptions::default() };
        let output = [batch, in_channels, height, width];
        return counted(Convolution { input, output, kernel, options }, input, x.dtype());
    }
    Ok(dsd_ops::conv_transpose2d(x, weight, None, options)?)
}

/// The end of a residual block: [`dsd_ops::add_relu`].
///
/// # Errors
/// Those of the operation.
pub(crate) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // Where only sizes matter, a sum would allocate what convolutions do not.
    if is_counting() && a.dims() == b.dims() {
        return Ok(a.clone());
    }
    Ok(dsd_ops::add_relu(a, b)?)
}

/// A transposed convolution with stride 2 that undoes a halving (rounded up) of the size: kernel 3×3, no bias.
#[derive(Debug)]
pub struct Doubling {
    weight: Tensor,
}

impl Doubling {
    /// Parameter `weight` `[in, out, 3, 3]`.
    ///
    /// # Errors
    /// A parameter of another shape.
    pub fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((in_channels, out_channels, 3, 3), "weight", init::TORCH_CONV)?;
        Ok(Self { weight })
    }

    /// `[N,in,h,w]` → `[N,out,H,W]`, where h = ⌈H/2⌉ and w = ⌈W/2⌉.
    ///
    /// # Errors
    /// A size of which the input is not the half; those of [`dsd_ops::conv_transpose2d`].
    pub fn forward(&self, x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
        let (_, _, height, width) = dsd_ops::check::nchw("doubling", "x", x)?;
        if [height, width] != size.map(|full| full.div_ceil(2)) {
            return Err(dsd_ops::check::shape("doubling", "x", format!("half of {size:?}, rounded up"), x).into());
        }
        // (h − 1)·2 − 2·padding + 3 + output_padding, with padding 1: odd sizes need none, even ones one more row.
        let output_padding = size.map(|full| (full + 1) % 2);
        let options = ConvTranspose2dOptions { stride: [2; 2], padding: [1; 2], output_padding, ..Default::default() };
        conv_transpose2d(x, &self.weight, options)
    }
}

/// Batch normalisation: parameters `weight`, `bias`, buffers `running_mean`, `running_var`, all `[C]`.
#[derive(Debug)]
pub struct BatchNorm2d {
    path: String,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: f64,
    momentum: f64,
}

impl BatchNorm2d {
    /// Begins as the identity on normalised input: scale 1, shift 0, mean 0, variance 1.
    ///
    /// # Errors
    /// A parameter of another shape.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            path: vb.prefix(),
            weight: vb.get_with_hints(channels, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(channels, "bias", Init::Const(0.0))?,
            mean: vb.get_with_hints(channels, "running_mean", Init::Const(0.0))?,
            var: vb.get_with_hints(channels, "running_var", Init::Const(1.0))?,
            eps: BATCH_NORM_EPS,
            momentum: BATCH_NORM_MOMENTUM,
        })
    }

    /// The same with this number added to the variance before its root (1e-5 otherwise).
    #[must_use]
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// The same with running statistics that go this part of the way to those of a batch (0.1 otherwise).
    #[must_use]
    pub fn with_momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Normalises `[N,C,H,W]` and applies the activation, in one operation. Training uses the statistics of the batch
    /// and moves the running ones towards them, in place.
    ///
    /// # Errors
    /// Those of [`dsd_ops::batch_norm_train`] and [`dsd_ops::batch_norm_eval`].
    pub fn forward(&self, x: &Tensor, activation: Activation, mode: Mode) -> Result<Tensor> {
        let &Self { ref path, ref weight, ref bias, ref mean, ref var, eps, momentum } = self;
        if is_counting() {
            return Ok(x.clone());
        }
        let normalised = match mode {
            Mode::Eval => dsd_ops::batch_norm_eval(x, weight, bias, mean, var, eps, activation)?,
            Mode::Train { .. } => {
                // A block that is computed again has moved its statistics already.
                let running = (!dsd_ops::is_recomputing()).then_some(RunningStatistics { mean, var, momentum });
                dsd_ops::batch_norm_train(x, weight, bias, running, eps, activation)?
            }
        };
        look(path, &normalised)?;
        Ok(normalised)
    }

    /// Normalises `[N,C,H,W]` and rectifies with trained slopes, in one operation; otherwise as [`BatchNorm2d::forward`].
    ///
    /// # Errors
    /// Those of [`dsd_ops::batch_norm_prelu_train`] and [`dsd_ops::batch_norm_prelu_eval`].
    pub fn forward_prelu(&self, x: &Tensor, prelu: &PRelu, mode: Mode) -> Result<Tensor> {
        let &Self { ref path, ref weight, ref bias, ref mean, ref var, eps, momentum } = self;
        if is_counting() {
            return Ok(x.clone());
        }
        let slopes = &prelu.weight;
        let rectified = match mode {
            Mode::Eval => dsd_ops::batch_norm_prelu_eval(x, weight, bias, slopes, mean, var, eps)?,
            Mode::Train { .. } => {
                let running = (!dsd_ops::is_recomputing()).then_some(RunningStatistics { mean, var, momentum });
                dsd_ops::batch_norm_prelu_train(x, weight, bias, slopes, running, eps)?
            }
        };
        look(path, &rectified)?;
        Ok(rectified)
    }
}

/// A convolution, batch normalisation and an activation.
#[derive(Debug)]
pub struct ConvBn {
    conv: Conv2d,
    norm: BatchNorm2d,
    activation: Activation,
}

impl ConvBn {
    /// The two layers lie at two paths, because published weights name them side by side.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`].
    pub fn new(config: Conv2dConfig, activation: Activation, conv: VarBuilder, norm: VarBuilder) -> Result<Self> {
        let norm = BatchNorm2d::new(config.out_channels, norm)?;
        Ok(Self { conv: Conv2d::new(config, conv)?, norm, activation })
    }

    /// The same with this number added to the variance before its root (1e-5 otherwise).
    #[must_use]
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.norm = self.norm.with_eps(eps);
        self
    }

    /// The same with running statistics that go this part of the way to those of a batch (0.1 otherwise).
    #[must_use]
    pub fn with_momentum(mut self, momentum: f64) -> Self {
        self.norm = self.norm.with_momentum(momentum);
        self
    }

    /// `[N,in,H,W]` → `[N,out,H',W']`.
    ///
    /// # Errors
    /// Those of the layers.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, self.activation, mode)
    }
}

/// A rectifier with one trained slope per channel for negative values: parameter `weight` `[C]`.
#[derive(Debug)]
pub struct PRelu {
    weight: Tensor,
}

impl PRelu {
    /// All slopes begin at 0.25.
    ///
    /// # Errors
    /// A parameter of another shape.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(channels, "weight", Init::Const(PRELU_SLOPE))? })
    }

    /// `[N,C,H,W]` → `[N,C,H,W]`.
    ///
    /// # Errors
    /// Those of [`dsd_ops::prelu`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(dsd_ops::prelu(x, &self.weight)?)
    }
}

/// Drops whole channels of a sample while training. What it drops is a function of (seed, step, path of the layer).
#[derive(Debug)]
pub struct Dropout2d {
    probability: f64,
    stream_index: u64,
}

impl Dropout2d {
    /// `vb` gives the path; there is no parameter.
    ///
    /// # Errors
    /// A probability outside [0, 1).
    pub fn new(probability: f64, vb: &VarBuilder) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::config("dropout", "at least 0 and below 1", probability));
        }
        Ok(Self { probability, stream_index: name_hash(&vb.prefix()) })
    }

    /// `[N,C,H,W]` → `[N,C,H,W]`; the identity in evaluation.
    ///
    /// # Errors
    /// Those of [`dsd_ops::dropout2d`].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Train { seed, step } if self.probability > 0.0 => {
                let mut stream = Stream::new(seed, "dropout", step, self.stream_index);
                Ok(dsd_ops::dropout2d(x, self.probability, &mut stream)?)
            }
            _ => Ok(x.clone()),
        }
    }
}
