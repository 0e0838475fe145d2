//! Softmax cross-entropy of segmentation logits, one node of the graph.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, WithDType, bail};
use dsd_kernels::activation::Element;
use dsd_kernels::cross_entropy::{self as kernels, Forward, Sizes, Weighting};

use crate::storage::{by_dtype, from_elements, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

/// What a pixel counts in [`cross_entropy`].
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyOptions<'a> {
    /// Pixels with this label count nothing; usually 255.
    pub ignore_label: u8,
    /// A finite factor ≥ 0 for the pixels of each class, `[C]`. None: 1 for all.
    pub class_weights: Option<&'a [f64]>,
}

/// The mean of −ln softmax(logits) at the label over the pixels that count; with class weights PyTorch's weighted
/// mean Σ w·l / Σ w.
///
/// # Shapes
/// logits: `[N,C,H,W]`, f32 or f64. labels: `[N,H,W]` u8, class ids below C or the ignored label.
/// # Returns
/// `[]` of the type of the logits, in nats, ≥ 0. No pixel that counts: 0, with zero gradient.
/// # Gradient
/// Reaches the logits. Pixels that do not count change nothing, whatever their logits are.
/// # Numerics
/// Finite for |logit| ≤ 1e4 and far beyond; summed in f64 in a fixed order.
/// # Errors
/// Shape, DType or Param. A label that is neither a class nor the ignored one is named with its pixel (n, h, w).
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// use dsd_ops::{CrossEntropyOptions, cross_entropy};
/// // One image of two classes and two pixels; the second pixel is ignored.
/// let logits = Tensor::new(&[[[[0f64, 7.0]], [[3f64.ln(), 7.0]]]], &Device::Cpu)?;
/// let labels = Tensor::new(&[[[1u8, 255]]], &Device::Cpu)?;
/// let loss = cross_entropy(&logits, &labels, CrossEntropyOptions { ignore_label: 255, class_weights: None })?;
/// assert!((loss.to_scalar::<f64>()? - (4f64 / 3.0).ln()).abs() < 1e-15);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, options: CrossEntropyOptions<'_>) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    let (batch, classes, height, width) = check::nchw(OP, "logits", logits)?;
    check::dtype(OP, "labels", labels, DType::U8)?;
    check::same_shape(OP, "labels", labels, &[batch, height, width])?;
    let op = CrossEntropy {
        sizes: Sizes { batch, classes, height, width },
        labels: labels.contiguous()?,
        ignore_label: options.ignore_label,
        class_weights: options.class_weights.map(<[f64]>::to_vec),
        single: OnceLock::new(),
        double: OnceLock::new(),
    };
    // Before candle is involved: an error that passes through it may come back with a backtrace in its message.
    with_slices([&op.labels], |[labels]| Ok(kernels::check_labels(op.sizes, labels, op.weighting())))??;
    Ok(tape::apply1(&logits.contiguous()?, op, Reads::Inputs)?)
}

struct CrossEntropy {
    sizes: Sizes,
    labels: Tensor,
    ignore_label: u8,
    class_weights: Option<Vec<f64>>,
    /// What the forward pass found, in the type of the logits.
    single: OnceLock<Forward<f32>>,
    double: OnceLock<Forward<f64>>,
}

/// Where an element type keeps what the forward pass found.
trait Saved: WithDType + Element {
    fn saved(op: &CrossEntropy) -> &OnceLock<Forward<Self>>;
}

impl Saved for f32 {
    fn saved(op: &CrossEntropy) -> &OnceLock<Forward<Self>> {
        &op.single
    }
}

impl Saved for f64 {
    fn saved(op: &CrossEntropy) -> &OnceLock<Forward<Self>> {
        &op.double
    }
}

impl CrossEntropy {
    fn weighting(&self) -> Weighting<'_> {
        Weighting { ignore_label: self.ignore_label, class_weights: self.class_weights.as_deref() }
    }

    fn forward<T: Saved>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let logits = storage::slice::<T>(s, l)?;
        let forward = with_slices([&self.labels], |[labels]| {
            Ok(kernels::forward(self.sizes, logits, labels, self.weighting())?)
        })?;
        let loss = <T as dsd_kernels::Float>::from_f64(forward.loss);
        T::saved(self).get_or_init(|| forward);
        Ok(storage::tensor(vec![loss], ()))
    }

    fn backward<T: Saved>(&self, logits: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let Some(forward) = T::saved(self).get() else { bail!("cross_entropy: backward before forward") };
        let g = dsd_kernels::Float::to_f64(g.to_scalar::<T>()?);
        let mut gradient = dsd_kernels::zeros(logits.elem_count());
        with_slices([&self.labels], |[labels]| {
            with_slices::<T, _, _>([logits], |[logits]| {
                Ok(kernels::backward(self.sizes, logits, labels, self.weighting(), forward, g, &mut gradient)?)
            })
            .map_err(Error::from)
        })?;
        from_elements(gradient, logits.shape())
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("cross_entropy", s.dtype(), self.forward(s, l))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        by_dtype!("cross_entropy", logits.dtype(), self.backward(logits, g)).map(Some)
    }
}

#[cfg(test)]
mod tests;
