//! Checks of arguments, shared by every crate that works on tensors. Each names the operation and the argument.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// The sizes of a `[N,C,H,W]` float tensor.
///
/// # Errors
/// Shape where the rank is not 4 or a size is 0; DType where it is neither f32 nor f64.
pub fn nchw(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<(usize, usize, usize, usize)> {
    float(op, argument, tensor)?;
    match *tensor.dims() {
        [n, c, h, w] if n * c * h * w > 0 => Ok((n, c, h, w)),
        _ => Err(shape(op, argument, "[N,C,H,W] with no size 0", tensor)),
    }
}

/// Refuses a tensor that is neither f32 nor f64.
///
/// # Errors
/// DType.
pub fn float(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        other => Err(Error::DType { op, argument, expected: "f32 or f64", got: other.as_str() }),
    }
}

/// Refuses a tensor of another element type than the one named.
///
/// # Errors
/// DType.
pub fn dtype(op: &'static str, argument: &'static str, tensor: &Tensor, expected: DType) -> Result<()> {
    if tensor.dtype() == expected {
        Ok(())
    } else {
        Err(Error::DType { op, argument, expected: expected.as_str(), got: tensor.dtype().as_str() })
    }
}

/// Refuses a tensor of another shape than the one given.
///
/// # Errors
/// Shape.
pub fn same_shape(op: &'static str, argument: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected { Ok(()) } else { Err(shape(op, argument, format!("{expected:?}"), tensor)) }
}

/// A finite number above zero.
///
/// # Errors
/// Param.
pub fn positive(op: &'static str, argument: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(param(op, argument, "a finite number above 0", value))
    }
}

/// An [`Error::Shape`].
pub fn shape(op: &'static str, argument: &'static str, expected: impl ToString, got: &Tensor) -> Error {
    Error::Shape { op, argument, expected: expected.to_string(), got: got.dims().to_vec() }
}

/// An [`Error::Param`].
pub fn param(op: &'static str, argument: &'static str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Param { op, argument, expected: expected.to_string(), got: got.to_string() }
}
