//! A loss as one node of the graph: its value is known when it enters, its gradient is a closed form.

use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Storage, Tensor, WithDType, bail};
use dsd_ops::{log_softmax_channels, softmax_channels};
use rayon::prelude::*;

use super::labels::Labels;
use crate::Result;

/// Positions that one task sums over the classes.
const TILE: usize = 4096;

/// How the gradient of a loss follows from what its forward pass kept.
pub(crate) trait Slope<T>: Send + Sync + 'static {
    /// `upstream` · ∂L/∂logits, row-major `[N,C,H,W]`.
    fn gradient(&self, logits: &Tensor, upstream: f64) -> Result<Vec<T>>;
}

/// The scalar `value` as a function of `logits`.
pub(crate) fn node<T: WithDType>(
    name: &'static str,
    logits: &Tensor,
    value: f64,
    slope: impl Slope<T>,
) -> Result<Tensor> {
    Ok(logits.apply_op1(Node { name, value, slope, element: PhantomData })?)
}

struct Node<T, S> {
    name: &'static str,
    value: f64,
    slope: S,
    element: PhantomData<T>,
}

impl<T: WithDType, S: Slope<T>> CustomOp1 for Node<T, S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((T::to_cpu_storage_owned(vec![T::from_f64(self.value)]), ().into()))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let upstream = upstream.to_scalar::<T>()?.to_f64();
        let gradient = self.slope.gradient(&logits.detach(), upstream)?;
        Tensor::from_vec(gradient, logits.shape(), &Device::Cpu).map(Some)
    }
}

/// Calls `f` with the elements of a contiguous tensor.
pub(crate) fn with_values<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else { bail!("task losses run on the CPU") };
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("a task loss received a strided tensor") };
    Ok(f(&T::cpu_storage_as_slice(cpu)?[from..to]))
}

/// ln p at each pixel's label, `[N,H,W]`; 0 where the pixel does not count.
pub(super) fn label_log_probs<T: WithDType>(logits: &Tensor, labels: &Labels) -> Result<Vec<T>> {
    let log_probs = log_softmax_channels(&logits.detach())?;
    let positions = labels.positions();
    Ok(with_values(&log_probs, |log_probs: &[T]| {
        let pick = |(pixel, &id): (usize, &u8)| {
            let plane = pixel / positions * labels.classes + usize::from(id);
            if id == labels.ignored { T::zero() } else { log_probs[plane * positions + pixel % positions] }
        };
        labels.ids.par_iter().enumerate().with_min_len(TILE).map(pick).collect()
    })?)
}

/// From ∂L/∂p to ∂L/∂z: p_c · (G_c − Σ_k p_k·G_k), with G from `slope(plane, pixel of the image, p)`. Pixels that do not
/// count get 0.
pub(super) fn through_softmax<T: WithDType>(
    logits: &Tensor,
    labels: &Labels,
    slope: impl Fn(usize, usize, T) -> T + Sync,
) -> Result<Vec<T>> {
    let (classes, positions) = (labels.classes, labels.positions());
    let probs = softmax_channels(logits)?;
    Ok(with_values(&probs, |probs: &[T]| {
        let mut sums = vec![T::zero(); labels.ids.len()];
        sums.par_chunks_mut(positions).enumerate().for_each(|(image, sums)| {
            sums.par_chunks_mut(TILE).enumerate().for_each(|(tile, sums)| {
                let from = tile * TILE;
                for plane in image * classes..(image + 1) * classes {
                    let probs = &probs[plane * positions + from..];
                    for (offset, (sum, &p)) in sums.iter_mut().zip(probs).enumerate() {
                        *sum += p * slope(plane, from + offset, p);
                    }
                }
            });
        });
        let mut gradient = vec![T::zero(); probs.len()];
        gradient.par_chunks_mut(positions).zip(probs.par_chunks(positions)).enumerate().for_each(
            |(plane, (gradient, probs))| {
                let image = plane / classes;
                let pixels = labels.image(image).iter().zip(&sums[image * positions..]);
                for (pixel, ((gradient, &p), (&id, &sum))) in gradient.iter_mut().zip(probs).zip(pixels).enumerate() {
                    if id != labels.ignored {
                        *gradient = p * (slope(plane, pixel, p) - sum);
                    }
                }
            },
        );
        gradient
    })?)
}

/// Calls a generic function for the element type of checked logits.
macro_rules! by_element {
    ($logits:expr, $function:ident($($arg:expr),* $(,)?)) => {
        if $logits.dtype() == candle_core::DType::F32 { $function::<f32>($($arg),*) } else { $function::<f64>($($arg),*) }
    };
}
pub(crate) use by_element;
