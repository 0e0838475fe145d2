//! Each plane times its own number, as squeeze-and-excitation needs it, without a broadcast copy.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, WithDType};
use dsd_kernels::activation::Element;
use dsd_kernels::scale_channels as kernels;

use crate::activation::planes_of;
use crate::storage::{by_dtype, from_elements, slice, tensor, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result, check};

const OP: &str = "scale_channels";

/// `y[n,c,i,j] = x[n,c,i,j] · scale[n,c]`.
///
/// # Shapes
/// x: `[N,C,H,W]`, f32 or f64. scale: `[N,C,1,1]`, of the type of x. The result has the shape of x.
/// # Gradient
/// Reaches x (g · scale) and scale (Σ g · x over the plane).
/// # Errors
/// Shape or DType.
/// # Source
/// Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, eq. 4.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu)?.reshape((1, 2, 1, 2))?;
/// let scale = Tensor::new(&[10f32, 0.5], &Device::Cpu)?.reshape((1, 2, 1, 1))?;
/// let y = dsd_ops::scale_channels(&x, &scale)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [10.0, 20.0, 1.5, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn scale_channels(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let (n, c, _, _) = check::nchw(OP, "x", x)?;
    check::dtype(OP, "scale", scale, x.dtype())?;
    check::same_shape(OP, "scale", scale, &[n, c, 1, 1])?;
    Ok(tape::apply2(&x.contiguous()?, &scale.contiguous()?, ScaleChannels, Reads::Inputs)?)
}

struct ScaleChannels;

impl ScaleChannels {
    fn forward<T: WithDType + Element>(
        &self,
        (x, layout): (&CpuStorage, &Layout),
        (scale, scale_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, scale) = (slice::<T>(x, layout)?, slice::<T>(scale, scale_layout)?);
        let mut y = dsd_kernels::zeros(x.len());
        kernels::forward(planes_of(layout.shape()), x, scale, &mut y).map_err(Error::from)?;
        Ok(tensor(y, layout.shape()))
    }

    /// The gradients of x and scale; None for those that are not tracked.
    fn backward<T: WithDType + Element>(
        &self,
        [x, scale, g]: [&Tensor; 3],
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = planes_of(x.shape());
        let mut dx = x.track_op().then(|| dsd_kernels::zeros(x.elem_count()));
        let mut dscale = scale.track_op().then(|| vec![T::ZERO; scale.elem_count()]);
        with_slices::<T, _, _>([x, scale, g], |[x, scale, g]| {
            if let Some(dx) = &mut dx {
                kernels::backward_x(sizes, scale, g, dx)?;
            }
            if let Some(dscale) = &mut dscale {
                kernels::backward_scale(sizes, x, g, dscale)?;
            }
            Ok(())
        })?;
        let dx = dx.map(|dx| from_elements(dx, x.shape())).transpose()?;
        Ok((dx, dscale.map(|dscale| from_elements(dscale, scale.shape())).transpose()?))
    }
}

impl CustomOp2 for ScaleChannels {
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
        x: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        by_dtype!(OP, x.dtype(), self.backward([x, scale, &g]))
    }
}
