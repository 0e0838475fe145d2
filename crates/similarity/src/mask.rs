//! Ignored pixels at the resolution of a comparison.

use candle_core::{DType, Tensor};
use dsd_ops::{check, resize_nearest};

use crate::Result;

/// What is counted on one grid.
pub(crate) struct Counted {
    /// `[N,1,h,w]`, 1 counted and 0 ignored, in the type of the compared tensors; `None` where all are counted.
    pub(crate) mask: Option<Tensor>,
    /// Counted positions of the whole batch; 1 where there are none, so that it can be divided by.
    pub(crate) positions: f64,
    /// Images with a counted position; 1 where there are none.
    pub(crate) images: f64,
}

impl Counted {
    /// Brings `valid` to the grid `size` of `like`, a tensor whose first size is the batch.
    pub(crate) fn at(op: &'static str, valid: Option<&Tensor>, like: &Tensor, size: [usize; 2]) -> Result<Self> {
        let batch = like.dim(0)?;
        let Some(valid) = valid else {
            return Ok(Self { mask: None, positions: (batch * size[0] * size[1]) as f64, images: batch as f64 });
        };
        check::dtype(op, "valid", valid, DType::U8)?;
        match *valid.dims() {
            [n, h, w] if n == batch && h * w > 0 => {}
            _ => return Err(check::shape(op, "valid", format!("[{batch},H,W] with no size 0"), valid)),
        }
        let greatest = valid.flatten_all()?.max(0)?.to_scalar::<u8>()?;
        if greatest > 1 {
            return Err(check::param(op, "valid", "0 (ignored) or 1 (counted) everywhere", greatest));
        }
        let mask = resize_nearest(&valid.to_dtype(like.dtype())?.unsqueeze(1)?, size)?;
        let per_image = mask.flatten_from(1)?.sum(1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let images = per_image.iter().filter(|&&positions| positions > 0.0).count();
        Ok(Self {
            mask: Some(mask),
            positions: per_image.iter().sum::<f64>().max(1.0),
            images: (images as f64).max(1.0),
        })
    }

    /// Sets ignored positions of an `[N,C,h,w]` tensor to zero.
    pub(crate) fn apply(&self, tensor: Tensor) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => Ok(tensor.broadcast_mul(mask)?),
            None => Ok(tensor),
        }
    }
}
