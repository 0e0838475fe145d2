//! Bilinear and nearest resize of `[N,C,H,W]` tensors.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType};
use dsd_kernels::Float;
use dsd_kernels::resize::{
    resize_bilinear as bilinear, resize_bilinear_backward as bilinear_backward, resize_nearest as nearest,
    resize_nearest_backward as nearest_backward,
};

use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

/// Bilinear resize without antialiasing, as PyTorch's `F.interpolate(mode="bilinear", size=…)`.
///
/// With `align_corners` the centres of the corner pixels coincide, else the corners of the images do.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided. size: output height and width, at least 1.
/// # Returns
/// `[N,C,size[0],size[1]]`.
/// # Gradient
/// Reaches x; it is the transposed map.
/// # Errors
/// Shape or DType for x, Param for a size 0.
pub fn resize_bilinear(x: &Tensor, size: [usize; 2], align_corners: bool) -> Result<Tensor> {
    resize("resize_bilinear", x, size, Method::Bilinear { align_corners })
}

/// Nearest resize, as PyTorch's `F.interpolate(mode="nearest", size=…)`: output pixel d copies input ⌊d · in / out⌋.
///
/// # Shapes
/// x: `[N,C,H,W]` f32 or f64, maybe strided. size: output height and width, at least 1.
/// # Returns
/// `[N,C,size[0],size[1]]`.
/// # Gradient
/// Reaches x; each pixel sums over its copies.
/// # Errors
/// Shape or DType for x, Param for a size 0.
pub fn resize_nearest(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    resize("resize_nearest", x, size, Method::Nearest)
}

#[derive(Clone, Copy)]
enum Method {
    Bilinear { align_corners: bool },
    Nearest,
}

fn resize(op: &'static str, x: &Tensor, output: [usize; 2], method: Method) -> Result<Tensor> {
    let (_, _, height, width) = check::nchw(op, "x", x)?;
    if output.contains(&0) {
        return Err(check::param(op, "size", "at least 1 by 1", format!("{output:?}")));
    }
    let resize = Resize { op, method, input: [height, width], output, backward: false };
    Ok(tape::apply1(&x.contiguous()?, resize, Reads::Sizes)?)
}

/// The resize from `input` to `output`, or its gradient, which goes the other way.
#[derive(Clone, Copy)]
struct Resize {
    op: &'static str,
    method: Method,
    input: [usize; 2],
    output: [usize; 2],
    backward: bool,
}

impl Resize {
    fn run<T: WithDType + Float>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(storage, layout)?;
        let (n, c, _, _) = layout.shape().dims4()?;
        let (planes, input, output) = (n * c, self.input, self.output);
        let result = match (self.method, self.backward) {
            (Method::Bilinear { align_corners }, false) => bilinear(x, planes, input, output, align_corners),
            (Method::Bilinear { align_corners }, true) => bilinear_backward(x, planes, input, output, align_corners),
            (Method::Nearest, false) => nearest(x, planes, input, output),
            (Method::Nearest, true) => nearest_backward(x, planes, input, output),
        }?;
        let [height, width] = if self.backward { input } else { output };
        Ok(storage::tensor(result, (n, c, height, width)))
    }
}

impl CustomOp1 for Resize {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.run::<f32>(storage, layout),
            CpuStorage::F64(_) => self.run::<f64>(storage, layout),
            other => {
                Err(Error::DType { op: self.op, argument: "x", expected: "f32 or f64", got: other.dtype().as_str() })
            }
        }
        .map_err(candle_core::Error::from)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&Self { backward: true, ..*self })?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::gradcheck::check_gradients;

    fn ramp(shape: &[usize]) -> Tensor {
        let values: Vec<f64> =
            (0..shape.iter().product()).map(|place: usize| ((place * 7) % 11) as f64 - 4.5).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_equal_central_differences() {
        let x = ramp(&[2, 1, 3, 5]);
        let x = std::slice::from_ref(&x);
        for size in [[7, 9], [2, 3], [3, 5], [1, 1], [1, 12]] {
            for align_corners in [false, true] {
                let name = format!("bilinear to {size:?}, align_corners {align_corners}");
                check_gradients(&name, x, |x| Ok(resize_bilinear(&x[0], size, align_corners)?)).unwrap();
            }
            check_gradients(&format!("nearest to {size:?}"), x, |x| Ok(resize_nearest(&x[0], size)?)).unwrap();
        }
        check_gradients("strided and used twice", x, |x| {
            let part = x[0].transpose(2, 3)?.narrow(2, 1, 3)?;
            resize_bilinear(&part, [4, 4], true)? + resize_nearest(&part, [4, 4])?
        })
        .unwrap();
    }

    #[test]
    fn the_same_size_of_a_strided_part_is_that_part() {
        let part = ramp(&[1, 2, 4, 6]).narrow(3, 2, 3).unwrap().transpose(2, 3).unwrap();
        let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for dtype in [DType::F32, DType::F64] {
            let part = part.to_dtype(dtype).unwrap();
            assert_eq!(values(&resize_bilinear(&part, [3, 4], true).unwrap()), values(&part));
            assert_eq!(values(&resize_nearest(&part, [3, 4]).unwrap()), values(&part));
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let x = ramp(&[1, 2, 4, 6]);
        let expected = "resize_bilinear: size is [3, 0], expected at least 1 by 1";
        assert_eq!(message(resize_bilinear(&x, [3, 0], true)), expected);
        let flat = x.flatten_all().unwrap();
        assert!(message(resize_nearest(&flat, [3, 3])).contains("x has shape [48]"));
        let ids = x.to_dtype(DType::U8).unwrap();
        assert!(message(resize_nearest(&ids, [3, 3])).contains("x is u8, expected f32 or f64"));
    }
}
