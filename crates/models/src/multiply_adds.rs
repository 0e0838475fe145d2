//! Multiply-adds of a network, counted by a forward pass that computes nothing.
//!
//! While a thread counts, a convolution adds what it would compute to the count and gives zeros of the right shape;
//! batch normalisation and the sum of a residual block give an input back. All else runs as always, so sizes are those
//! of the network itself.

use std::cell::RefCell;

use candle_core::{DType, Device, Shape, Tensor};
use dsd_ops::Conv2dOptions;

use crate::params::ShapeRecorder;
use crate::{Error, Mode, ModelConfig, Result, build};

thread_local! {
    /// What has been met, while this thread counts.
    static MET: RefCell<Option<Vec<Convolution>>> = const { RefCell::new(None) };
}

/// A convolution of a network. A transposed one stands as the convolution whose passes it runs backwards: what it reads
/// is `output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// `[N,C,H,W]`.
    pub input: [usize; 4],
    /// `[N,K,Ho,Wo]`.
    pub output: [usize; 4],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Stride, padding, dilation, groups.
    pub options: Conv2dOptions,
}

impl Convolution {
    /// Of one forward pass.
    #[must_use]
    pub fn multiply_adds(&self) -> u64 {
        let taps = self.input[1] / self.options.groups * self.kernel[0] * self.kernel[1];
        self.output.iter().product::<usize>() as u64 * taps as u64
    }
}

/// The multiply-adds of one image of `[height, width]` pixels: those of all convolutions, transposed ones included.
/// Biases, normalisation, activations, pooling and resizing do not count, as is usual; the auxiliary head does not
/// either, because a network can be used without it.
///
/// # Errors
/// A setting out of its range, an empty image.
pub fn multiply_adds(config: &ModelConfig, num_classes: usize, size: [usize; 2]) -> Result<u64> {
    let mut config = *config;
    if let Some(settings) = config.encoder_decoder_mut() {
        settings.aux = false;
    }
    let met = convolutions(&config, num_classes, [1, size[0], size[1]])?;
    Ok(met.iter().map(Convolution::multiply_adds).sum())
}

/// All convolutions of a network in the order of its forward pass, for images `[N,3,height,width]`.
///
/// # Errors
/// A setting out of its range, an empty image.
pub fn convolutions(
    config: &ModelConfig,
    num_classes: usize,
    [batch, height, width]: [usize; 3],
) -> Result<Vec<Convolution>> {
    let network = build(config, num_classes, ShapeRecorder::default().builder())?;
    let images = zeros(&Shape::from((batch, 3, height, width)), DType::F32)?;
    let counting = Counting::start();
    network.forward(&images, Mode::Eval)?;
    counting.met().ok_or_else(|| Error::config("count", "not taken by another count inside", "none"))
}

/// While it lives, this thread counts.
struct Counting;

impl Counting {
    fn start() -> Self {
        MET.set(Some(Vec::new()));
        Self
    }

    fn met(&self) -> Option<Vec<Convolution>> {
        MET.take()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        MET.set(None);
    }
}

/// Whether this thread counts.
pub(crate) fn is_counting() -> bool {
    MET.with_borrow(Option::is_some)
}

/// Notes a convolution, and gives zeros of this shape without memory of their size.
pub(crate) fn counted(convolution: Convolution, shape: [usize; 4], dtype: DType) -> Result<Tensor> {
    MET.with_borrow_mut(|met| met.iter_mut().for_each(|met| met.push(convolution)));
    zeros(&Shape::from(shape.to_vec()), dtype)
}

fn zeros(shape: &Shape, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?)
}
