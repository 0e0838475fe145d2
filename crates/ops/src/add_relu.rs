//! The end of a residual block: the sum of two branches, cut off at zero, as one node of the graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, WithDType};
use dsd_kernels::activation::{self as kernels, Activation, Element};

use crate::storage::{by_dtype, from_elements, slice, tensor, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result, check};

const OP: &str = "add_relu";

/// max(a + b, 0), element by element.
///
/// # Shapes
/// a: any, f32 or f64. b: the shape and type of a. The result has the same.
/// # Gradient
/// Reaches a and b: 1 where a + b > 0, else 0 (also at 0, as PyTorch has it). Both receive one tensor.
/// # Numerics
/// A NaN stays one.
/// # Errors
/// DType or Shape.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[2f32, -3.0], &Device::Cpu)?);
/// assert_eq!(dsd_ops::add_relu(&a, &b)?.to_vec1::<f32>()?, [3.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check::float(OP, "a", a)?;
    check::dtype(OP, "b", b, a.dtype())?;
    check::same_shape(OP, "b", b, a.dims())?;
    Ok(tape::apply2(&a.contiguous()?, &b.contiguous()?, AddRelu, Reads::Output)?)
}

struct AddRelu;

impl AddRelu {
    fn forward<T: WithDType + Element>(
        &self,
        (a, layout): (&CpuStorage, &Layout),
        (b, b_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (slice::<T>(a, layout)?, slice::<T>(b, b_layout)?);
        let mut y = dsd_kernels::zeros(a.len());
        kernels::add_relu(a, b, &mut y).map_err(Error::from)?;
        Ok(tensor(y, layout.shape()))
    }

    fn backward<T: WithDType + Element>(&self, y: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let gradient = with_slices::<T, _, _>([y, g], |[elements, g]| {
            let mut gradient = dsd_kernels::zeros(elements.len());
            // The derivative of a ReLU is the same at its value as at its argument.
            kernels::backward(Activation::Relu, elements, elements, g, &mut gradient)?;
            Ok(gradient)
        })?;
        from_elements(gradient, y.shape())
    }
}

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, s1.dtype(), self.forward((s1, l1), (s2, l2)))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let gradient = by_dtype!(OP, y.dtype(), self.backward(y, &g))?;
        Ok((a.track_op().then(|| gradient.clone()), b.track_op().then_some(gradient)))
    }
}
