//! Pools of `[N,C,H,W]` tensors: maximum with indices, unpool, average and adaptive average.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Shape, Tensor, WithDType};
use dsd_kernels::Float;
use dsd_kernels::max_pool2d::Pool2d;
use dsd_kernels::{avg_pool2d as average, max_pool2d as maximum};

use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

/// The windows of a pool, as (vertical, horizontal) pairs, by PyTorch's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Size of a window, pixels, at least 1.
    pub kernel: [usize; 2],
    /// Distance of neighbouring windows, pixels, at least 1.
    pub stride: [usize; 2],
    /// Pixels added on each side, at most half a kernel.
    pub padding: [usize; 2],
    /// Whether a last window that is only partly inside counts. It must start inside the input or the left padding.
    pub ceil_mode: bool,
}

impl PoolOptions {
    fn pool(self) -> Pool2d {
        let Self { kernel, stride, padding, ceil_mode } = self;
        Pool2d { kernel, stride, padding, ceil_mode }
    }
}

/// Max pool, as PyTorch's `F.max_pool2d`.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided.
/// # Returns
/// `[N,C,H',W']`; padding counts as −∞, a NaN in a window makes its maximum NaN.
/// # Gradient
/// Reaches x: at the maximum, at the first one in row order where several are equal.
/// # Errors
/// Shape or DType for x; Kernel where the options are out of range or no window fits.
pub fn max_pool2d(x: &Tensor, options: PoolOptions) -> Result<Tensor> {
    Ok(max_pool2d_with_indices(x, options)?.0)
}

/// [`max_pool2d`] together with the places of the maxima, for [`max_unpool2d`].
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided.
/// # Returns
/// The maxima, `[N,C,H',W']`, and their places, u32 `[N,C,H',W']`: h · W + w in the input plane, the first maximum in row
/// order (with NaNs the last of them). No gradient goes through the places.
/// # Gradient
/// As for [`max_pool2d`].
/// # Errors
/// As for [`max_pool2d`].
pub fn max_pool2d_with_indices(x: &Tensor, options: PoolOptions) -> Result<(Tensor, Tensor)> {
    const OP: &str = "max_pool2d";
    let (_, _, height, width) = check::nchw(OP, "x", x)?;
    let pool = options.pool();
    let output = pool.output_size(OP, [height, width])?;
    let indices = Arc::new(OnceLock::new());
    let node = MaxPool { pool, output, indices: Arc::clone(&indices) };
    let maxima = tape::apply1(&x.contiguous()?, node, Reads::Sizes)?;
    let indices = indices.get().cloned().ok_or_else(not_run)?;
    Ok((maxima, indices))
}

/// Max unpool, as PyTorch's `F.max_unpool2d`: zeros with the values of x at the places that `indices` name.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided. indices: u32 `[N,C,H,W]`, `h · size[1] + w` in the output plane.
/// size: output height and width.
/// # Returns
/// `[N,C,size[0],size[1]]`. Where an index comes twice in a plane (overlapping windows), the last value in row order wins.
/// # Gradient
/// Reaches x: the gradient at its index. A value that a later one has overwritten receives it as well, as in PyTorch.
/// # Errors
/// Shape or DType for x and indices; an index that lies outside the output plane.
pub fn max_unpool2d(x: &Tensor, indices: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "max_unpool2d";
    check::nchw(OP, "x", x)?;
    check::dtype(OP, "indices", indices, DType::U32)?;
    check::same_shape(OP, "indices", indices, x.dims())?;
    if size.contains(&0) {
        return Err(check::param(OP, "size", "at least 1 by 1", format!("{size:?}")));
    }
    let indices = indices.detach().contiguous()?;
    Ok(tape::apply2(&x.contiguous()?, &indices, AtIndices { map: Map::Unpool, size }, Reads::Inputs)?)
}

/// Average pool, as PyTorch's `F.avg_pool2d`.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided.
/// # Returns
/// `[N,C,H',W']`. The divisor is the size of the window within the padded input, or without `count_include_pad` the number
/// of input pixels in it.
/// # Gradient
/// Reaches x.
/// # Errors
/// Shape or DType for x; Kernel where the options are out of range or no window fits.
pub fn avg_pool2d(x: &Tensor, options: PoolOptions, count_include_pad: bool) -> Result<Tensor> {
    const OP: &str = "avg_pool2d";
    let (_, _, height, width) = check::nchw(OP, "x", x)?;
    let (pool, input) = (options.pool(), [height, width]);
    let output = pool.output_size(OP, input)?;
    let bins = Bins::Windows { pool, count_include_pad };
    let pool = AveragePool { op: OP, bins, input, output, backward: false };
    Ok(tape::apply1(&x.contiguous()?, pool, Reads::Sizes)?)
}

/// Adaptive average pool, as PyTorch's `F.adaptive_avg_pool2d`: bin i covers ⌊i · in / out⌋ to ⌈(i + 1) · in / out⌉.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided. size: bins down and across; there may be more bins than pixels.
/// # Returns
/// `[N,C,size[0],size[1]]`.
/// # Gradient
/// Reaches x.
/// # Errors
/// Shape or DType for x, Param for a size 0.
pub fn adaptive_avg_pool2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "adaptive_avg_pool2d";
    let (_, _, height, width) = check::nchw(OP, "x", x)?;
    if size.contains(&0) {
        return Err(check::param(OP, "size", "at least 1 by 1", format!("{size:?}")));
    }
    let pool = AveragePool { op: OP, bins: Bins::Adaptive, input: [height, width], output: size, backward: false };
    Ok(tape::apply1(&x.contiguous()?, pool, Reads::Sizes)?)
}

fn not_run() -> Error {
    Error::Candle(candle_core::Error::Msg("max_pool2d: the forward pass has left no indices".to_string()).bt())
}

fn no_float(op: &'static str, argument: &'static str, got: &CpuStorage) -> Error {
    Error::DType { op, argument, expected: "f32 or f64", got: got.dtype().as_str() }
}

/// The forward pass of the max pool; it leaves the places of the maxima in `indices`.
struct MaxPool {
    pool: Pool2d,
    output: [usize; 2],
    indices: Arc<OnceLock<Tensor>>,
}

impl MaxPool {
    fn run<T: WithDType + Float>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(storage, layout)?;
        let (n, c, height, width) = layout.shape().dims4()?;
        let (maxima, places) = maximum::max_pool2d(x, n * c, [height, width], self.pool)?;
        let shape = (n, c, self.output[0], self.output[1]);
        let places = Tensor::from_vec(places, shape, &Device::Cpu)?;
        self.indices.get_or_init(|| places);
        Ok(storage::tensor(maxima, shape))
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.run::<f32>(storage, layout),
            CpuStorage::F64(_) => self.run::<f64>(storage, layout),
            other => Err(no_float(self.name(), "x", other)),
        }
        .map_err(candle_core::Error::from)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let indices = self.indices.get().ok_or_else(not_run)?;
        let backward = AtIndices { map: Map::PoolBackward, size: [height, width] };
        Ok(Some(gradient.contiguous()?.apply_op2_no_bwd(indices, &backward)?))
    }
}

/// Which map between values and the places that the indices name.
#[derive(Clone, Copy)]
enum Map {
    Unpool,
    UnpoolBackward,
    PoolBackward,
}

/// A map of (values, indices); `size` is that of the plane that the indices point into.
struct AtIndices {
    map: Map,
    size: [usize; 2],
}

impl AtIndices {
    fn run<T: WithDType + Float>(
        &self,
        (values, values_layout): (&CpuStorage, &Layout),
        (indices, indices_layout): (&CpuStorage, &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let values = storage::slice::<T>(values, values_layout)?;
        let indices = storage::slice::<u32>(indices, indices_layout)?;
        let (n, c, pooled_height, pooled_width) = indices_layout.shape().dims4()?;
        let (planes, [height, width]) = (n * c, self.size);
        Ok(match self.map {
            Map::Unpool => {
                storage::tensor(maximum::max_unpool2d(values, indices, planes, self.size)?, (n, c, height, width))
            }
            Map::UnpoolBackward => storage::tensor(
                maximum::max_unpool2d_backward(values, indices, planes, self.size)?,
                (n, c, pooled_height, pooled_width),
            ),
            Map::PoolBackward => storage::tensor(
                maximum::max_pool2d_backward(values, indices, planes, self.size)?,
                (n, c, height, width),
            ),
        })
    }
}

impl CustomOp2 for AtIndices {
    fn name(&self) -> &'static str {
        match self.map {
            Map::Unpool => "max_unpool2d",
            Map::UnpoolBackward => "max_unpool2d_backward",
            Map::PoolBackward => "max_pool2d_backward",
        }
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        values_layout: &Layout,
        indices: &CpuStorage,
        indices_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        match values {
            CpuStorage::F32(_) => self.run::<f32>((values, values_layout), (indices, indices_layout)),
            CpuStorage::F64(_) => self.run::<f64>((values, values_layout), (indices, indices_layout)),
            other => Err(no_float(self.name(), "x", other)),
        }
        .map_err(candle_core::Error::from)
    }

    fn bwd(
        &self,
        _: &Tensor,
        indices: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = Self { map: Map::UnpoolBackward, size: self.size };
        Ok((Some(gradient.contiguous()?.apply_op2_no_bwd(indices, &backward)?), None))
    }
}

/// Which pixels an average is over.
#[derive(Clone, Copy)]
enum Bins {
    Windows { pool: Pool2d, count_include_pad: bool },
    Adaptive,
}

/// An average pool from `input` to `output`, or its gradient, which goes the other way.
#[derive(Clone, Copy)]
struct AveragePool {
    op: &'static str,
    bins: Bins,
    input: [usize; 2],
    output: [usize; 2],
    backward: bool,
}

impl AveragePool {
    fn run<T: WithDType + Float>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(storage, layout)?;
        let (n, c, _, _) = layout.shape().dims4()?;
        let (planes, input, output) = (n * c, self.input, self.output);
        let result = match (self.bins, self.backward) {
            (Bins::Windows { pool, count_include_pad }, false) => {
                average::avg_pool2d(x, planes, input, pool, count_include_pad)
            }
            (Bins::Windows { pool, count_include_pad }, true) => {
                average::avg_pool2d_backward(x, planes, input, pool, count_include_pad)
            }
            (Bins::Adaptive, false) => average::adaptive_avg_pool2d(x, planes, input, output),
            (Bins::Adaptive, true) => average::adaptive_avg_pool2d_backward(x, planes, input, output),
        }?;
        let [height, width] = if self.backward { input } else { output };
        Ok(storage::tensor(result, (n, c, height, width)))
    }
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.run::<f32>(storage, layout),
            CpuStorage::F64(_) => self.run::<f64>(storage, layout),
            other => Err(no_float(self.op, "x", other)),
        }
        .map_err(candle_core::Error::from)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&Self { backward: true, ..*self })?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use dsd_random::Stream;

    use super::*;
    use crate::gradcheck::check_gradients;

    const OVERLAPPING: PoolOptions = PoolOptions { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: true };
    const HALF: PoolOptions = PoolOptions { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false };

    /// Distinct values in a random order, so that no maximum is near another value.
    fn distinct(shape: &[usize]) -> Tensor {
        let mut values: Vec<f64> = (0..shape.iter().product()).map(|place: usize| place as f64 * 0.25 - 3.0).collect();
        Stream::new(0, "distinct", 0, 0).shuffle(&mut values);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_equal_central_differences() {
        let x = distinct(&[2, 3, 5, 8]);
        let (pooled, indices) = max_pool2d_with_indices(&x, HALF).unwrap();
        let one = std::slice::from_ref::<Tensor>;
        check_gradients("max_pool2d", one(&x), |x| Ok(max_pool2d(&x[0], OVERLAPPING)?)).unwrap();
        check_gradients("max_unpool2d", one(&pooled), |x| Ok(max_unpool2d(&x[0], &indices, [5, 8])?)).unwrap();
        for include in [false, true] {
            check_gradients("avg_pool2d", one(&x), |x| Ok(avg_pool2d(&x[0], OVERLAPPING, include)?)).unwrap();
        }
        for bins in [[1, 1], [3, 2], [6, 6]] {
            check_gradients("adaptive_avg_pool2d", one(&x), |x| Ok(adaptive_avg_pool2d(&x[0], bins)?)).unwrap();
        }
        check_gradients("strided and used twice", one(&x), |x| {
            let turned = x[0].transpose(2, 3)?.narrow(2, 1, 6)?;
            max_pool2d(&turned, OVERLAPPING)? + avg_pool2d(&turned, OVERLAPPING, true)?
        })
        .unwrap();
    }

    #[test]
    fn both_element_types_agree_and_unpool_returns_the_maxima_to_their_places() {
        let x = distinct(&[1, 2, 6, 10]);
        let (wide, wide_indices) = max_pool2d_with_indices(&x, HALF).unwrap();
        let (narrow, indices) = max_pool2d_with_indices(&x.to_dtype(DType::F32).unwrap(), HALF).unwrap();
        let ids = |indices: &Tensor| indices.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(ids(&indices), ids(&wide_indices));
        let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&narrow), values(&wide));
        let unpooled = max_unpool2d(&wide, &wide_indices, [6, 10]).unwrap();
        for (unpooled, x) in values(&unpooled).iter().zip(values(&x)) {
            assert!(*unpooled == 0.0 || *unpooled == x);
        }
        assert_eq!(values(&unpooled).iter().sum::<f64>(), values(&wide).iter().sum::<f64>(), "each maximum once");
    }

    #[test]
    fn no_gradient_goes_to_the_indices() {
        let x = Var::from_tensor(&distinct(&[1, 1, 4, 4])).unwrap();
        let (pooled, indices) = max_pool2d_with_indices(x.as_tensor(), HALF).unwrap();
        assert!(pooled.track_op() && !indices.track_op());
        let back = max_unpool2d(&pooled, &indices, [4, 4]).unwrap();
        let gradients = back.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(x.as_tensor()).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert_eq!(gradient, 4.0);
    }

    #[test]
    fn bad_arguments_are_named() {
        let x = distinct(&[1, 1, 4, 4]);
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let padded = PoolOptions { padding: [0, 2], ..HALF };
        let expected = "max_pool2d: padding is 2, expected at most half the kernel (1)";
        assert_eq!(message(max_pool2d(&x, padded)), expected);
        let expected = "avg_pool2d: kernel is 9, expected at most the padded input (4)";
        assert_eq!(message(avg_pool2d(&x, PoolOptions { kernel: [2, 9], ..HALF }, true)), expected);
        let indices = Tensor::from_vec(vec![0u32, 16, 1, 2], (1, 1, 2, 2), &Device::Cpu).unwrap();
        let small = max_pool2d(&x, HALF).unwrap();
        assert!(
            message(max_unpool2d(&small, &indices, [4, 4])).contains("indices is 16, expected below the 16 pixels")
        );
        assert!(message(max_unpool2d(&x, &indices, [4, 4])).contains("indices has shape [1, 1, 2, 2]"));
        assert!(message(max_unpool2d(&small, &small, [4, 4])).contains("indices is f64, expected u32"));
        assert!(message(adaptive_avg_pool2d(&x, [1, 0])).contains("size is [1, 0]"));
        assert!(message(adaptive_avg_pool2d(&indices, [1, 1])).contains("x is u32, expected f32 or f64"));
    }
}
