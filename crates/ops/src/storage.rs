//! From candle's CPU storage to slices and back: the one place that knows how.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

use crate::Error;

/// The elements of a contiguous argument.
///
/// Operations make their arguments contiguous before they enter the graph, so a strided one here is a defect of ours.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (from, to) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("an operation received a strided tensor".to_string()).bt())?;
    Ok(&storage.as_slice::<T>()?[from..to])
}

/// Wraps a result.
pub(crate) fn tensor<T: WithDType>(elements: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(elements), shape.into())
}

/// Calls `f` with the elements of contiguous tensors: how a backward pass reads what it needs.
pub(crate) fn with_slices<T: WithDType, R, const COUNT: usize>(
    tensors: [&Tensor; COUNT],
    f: impl FnOnce([&[T]; COUNT]) -> crate::Result<R>,
) -> candle_core::Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; COUNT] = [&[]; COUNT];
    for (part, (guard, layout)) in slices.iter_mut().zip(&guards) {
        *part = match &**guard {
            Storage::Cpu(cpu) => slice(cpu, layout)?,
            _ => bail!("this operation has no backward pass on this device"),
        };
    }
    Ok(f(slices)?)
}

/// A gradient as a tensor.
pub(crate) fn from_elements<T: WithDType>(elements: Vec<T>, shape: &Shape) -> candle_core::Result<Tensor> {
    Tensor::from_vec(elements, shape, &Device::Cpu)
}

/// The error of an operation that received another element type than its checks let through.
pub(crate) fn unsupported(op: &'static str, got: DType) -> Error {
    Error::DType { op, argument: "x", expected: "f32 or f64", got: got.as_str() }
}

/// Calls a method that is generic over the element type for f32 or f64.
macro_rules! by_dtype {
    ($op:expr, $dtype:expr, $self:ident.$method:ident($($arg:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F32 => $self.$method::<f32>($($arg),*),
            candle_core::DType::F64 => $self.$method::<f64>($($arg),*),
            other => Err($crate::storage::unsupported($op, other).into()),
        }
    };
}
pub(crate) use by_dtype;
