//! Vectors of length 1, and what happens to vectors without a direction.

use candle_core::{D, Tensor};

use crate::Result;

/// Divides each vector along the last axis by its L2 norm; a vector whose norm is at most `floor` becomes 0 and passes
/// no gradient on.
///
/// The usual form v / max(‖v‖, ε) has the slope 1/ε for such a vector, which drowns every other gradient in f32, and a
/// square root whose slope at 0 is infinite. `floor`² must be a normal number of the tensor's type.
pub(crate) fn unit(vectors: &Tensor, floor: f64) -> Result<Tensor> {
    let squared = vectors.sqr()?.sum_keepdim(D::Minus1)?;
    let (root, kept) = guarded_sqrt(&squared, floor)?;
    // Where the vector is dropped, root is 0: 1 stands in for it.
    let divisor = (root + kept.affine(-1.0, 1.0)?)?;
    Ok(vectors.broadcast_mul(&(kept / divisor)?)?)
}

/// The square root of numbers ≥ 0, and 1 where it is above `floor`; elsewhere both are 0 and pass no gradient on.
pub(crate) fn guarded_sqrt(squared: &Tensor, floor: f64) -> Result<(Tensor, Tensor)> {
    let kept = squared.detach().gt(floor * floor)?.to_dtype(squared.dtype())?;
    // The root is taken of 1 where its slope would be too steep, and dropped afterwards.
    let safe = ((squared * &kept)? + kept.affine(-1.0, 1.0)?)?;
    let root = (safe.sqrt()? * &kept)?;
    Ok((root, kept))
}
