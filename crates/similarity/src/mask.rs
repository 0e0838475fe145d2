//! Ignored pixels at the resolution of a comparison.

use candle_core::{DType, Tensor};
use dsd_ops::{check, resize_nearest};

use crate::Result;

/// What a value at an ignored position is lowered by: its exponential is exactly 0, and it is finite in f32.
const LOWERED: f64 = 1e30;

/// What is counted on one grid.
pub(crate) struct Counted {
    /// `[N,1,h,w]`, 1 counted and 0 ignored, in the type of the compared tensors; `None` where all are counted.
    pub(crate) mask: Option<Tensor>,
    /// Counted positions of the whole batch; 1 where there are none, so that it can be divided by.
    pub(crate) positions: f64,
    /// Images with a counted position; 1 where there are none.
    pub(crate) images: f64,
    /// Counted positions of each image.
    pub(crate) per_image: Vec<f64>,
}

impl Counted {
    /// Brings `valid` to the grid `size` of `like`, a tensor whose first size is the batch.
    pub(crate) fn at(op: &'static str, valid: Option<&Tensor>, like: &Tensor, size: [usize; 2]) -> Result<Self> {
        let batch = like.dim(0)?;
        let Some(valid) = valid else {
            return Ok(Self::everything(batch, size));
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
        Self::of_mask(resize_nearest(&valid.to_dtype(like.dtype())?.unsqueeze(1)?, size)?)
    }

    /// No position of a grid is ignored.
    pub(crate) fn everything(batch: usize, size: [usize; 2]) -> Self {
        let per_image = vec![(size[0] * size[1]) as f64; batch];
        Self { mask: None, positions: per_image.iter().sum(), images: batch as f64, per_image }
    }

    /// Counts a mask `[N,1,h,w]` of ones and zeros.
    pub(crate) fn of_mask(mask: Tensor) -> Result<Self> {
        let per_image = mask.flatten_from(1)?.sum(1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let images = per_image.iter().filter(|&&positions| positions > 0.0).count();
        Ok(Self {
            mask: Some(mask),
            positions: per_image.iter().sum::<f64>().max(1.0),
            images: (images as f64).max(1.0),
            per_image,
        })
    }

    /// Sets ignored positions of an `[N,C,h,w]` tensor to zero.
    pub(crate) fn apply(&self, tensor: Tensor) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => Ok(tensor.broadcast_mul(mask)?),
            None => Ok(tensor),
        }
    }

    /// Lowers ignored positions of an `[N,C,h,w]` tensor so far that no maximum and no softmax takes them.
    pub(crate) fn lower(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => Ok(tensor.broadcast_mul(mask)?.broadcast_add(&mask.affine(LOWERED, -LOWERED)?)?),
            None => Ok(tensor.clone()),
        }
    }

    /// The counted positions of each image, row by row, as indices of its `h·w` positions; `None` where all are.
    pub(crate) fn indices(&self) -> Result<Option<Vec<Tensor>>> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let rows = mask.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let counted = |row: Vec<f64>| -> Result<Tensor> {
            let places: Vec<u32> = (0u32..).zip(row).filter(|&(_, one)| one > 0.0).map(|(place, _)| place).collect();
            let count = places.len();
            Ok(Tensor::from_vec(places, count, mask.device())?)
        };
        Ok(Some(rows.into_iter().map(counted).collect::<Result<_>>()?))
    }
}
