//! Dropout of whole channels.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType};
use dsd_kernels::Float;
use dsd_kernels::join::drop_planes_vec;
use dsd_random::Stream;

use crate::storage::by_dtype;
use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

/// Sets whole planes (n, c) to 0 with the given probability and multiplies the others by 1 / (1 − probability).
///
/// One number is drawn from the stream for each plane, in the order of (n, c); none where the probability is 0 or 1.
///
/// # Shapes
/// x: `[N,C,H,W]`, f32 or f64. The result has the same. Probability 0 returns x itself, 1 zeros.
/// # Gradient
/// Reaches x, through the same mask.
/// # Errors
/// Shape, DType, or Param where the probability is not in [0, 1].
/// # Source
/// Tompson et al., Efficient Object Localization Using Convolutional Networks, CVPR 2015, section 3.2.
pub fn dropout2d(x: &Tensor, probability: f64, stream: &mut Stream) -> Result<Tensor> {
    const OP: &str = "dropout2d";
    let (n, c, _, _) = check::nchw(OP, "x", x)?;
    if !(0.0..=1.0).contains(&probability) {
        return Err(check::param(OP, "probability", "a number in [0, 1]", probability));
    }
    if probability == 0.0 {
        return Ok(x.clone());
    }
    let kept: Vec<bool> = (0..n * c).map(|_| probability < 1.0 && !stream.chance(probability)).collect();
    let node = DropPlanes { kept, factor: 1.0 / (1.0 - probability) };
    Ok(tape::apply1(&x.contiguous()?, node, Reads::Sizes)?)
}

/// The mask: which planes stay. Forward and backward are the same map.
#[derive(Clone)]
struct DropPlanes {
    kept: Vec<bool>,
    factor: f64,
}

impl DropPlanes {
    fn run<T: WithDType + Float>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(s, l)?;
        let y = drop_planes_vec(x, &self.kept, <T as Float>::from_f64(self.factor)).map_err(Error::from)?;
        Ok(storage::tensor(y, l.shape()))
    }
}

impl CustomOp1 for DropPlanes {
    fn name(&self) -> &'static str {
        "dropout2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("dropout2d", s.dtype(), self.run(s, l))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        g.contiguous()?.apply_op1_no_bwd(self).map(Some)
    }
}

#[cfg(test)]
mod tests;
