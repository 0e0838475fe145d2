//! From candle's CPU storage to slices and back: the one place that knows how.

use candle_core::{CpuStorage, Layout, Result, Shape, WithDType};

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
