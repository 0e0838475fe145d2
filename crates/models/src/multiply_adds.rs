//! Multiply-adds of a network, counted by a forward pass that computes nothing.
//!
//! While a thread counts, a convolution adds what it would compute to the count and gives zeros of the right shape;
//! batch normalisation and the sum of a residual block give an input back. All else runs as always, so sizes are those
//! of the network itself.

use std::cell::Cell;

use candle_core::{DType, Device, Shape, Tensor};

use crate::params::ShapeRecorder;
use crate::{Error, Mode, ModelConfig, Result, build};

thread_local! {
    /// What has been counted, while this thread counts.
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
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
    let network = build(&config, num_classes, ShapeRecorder::default().builder())?;
    let images = zeros(&Shape::from((1, 3, size[0], size[1])), DType::F32)?;
    let counting = Counting::start();
    network.forward(&images, Mode::Eval)?;
    counting.count().ok_or_else(|| Error::config("count", "not taken by another count inside", "none"))
}

/// While it lives, this thread counts.
struct Counting;

impl Counting {
    fn start() -> Self {
        COUNT.set(Some(0));
        Self
    }

    fn count(&self) -> Option<u64> {
        COUNT.get()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        COUNT.set(None);
    }
}

/// Whether this thread counts.
pub(crate) fn is_counting() -> bool {
    COUNT.get().is_some()
}

/// Adds to the count and gives zeros of this shape, without memory of their size.
pub(crate) fn counted(multiply_adds: usize, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    COUNT.set(COUNT.get().map(|count| count + multiply_adds as u64));
    zeros(&shape.into(), dtype)
}

fn zeros(shape: &Shape, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?)
}
