//! The mean over channels of |F|^p: the one pass over full feature tensors that the attention losses need.
//!
//! a[n,h,w] = (1/C) Σ_c |F[n,c,h,w]|^p;   ∂a/∂F = (p/C) · sign(F) · |F|^(p−1), 0 at F = 0
//!
//! One graph node: the composition of elementwise operations would keep two tensors of the features' size and walk over
//! them about eight times.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::Result;

/// Positions that one task sums, so that a sum stays in the nearest cache while the channels pass by.
const TILE: usize = 2048;

/// `[N,C,H,W]` → `[N,1,H,W]`; the caller has checked rank, type and `power` ≥ 1.
pub(crate) fn mean_power(features: &Tensor, power: f64) -> Result<Tensor> {
    Ok(features.contiguous()?.apply_op1(MeanPower { power })?)
}

/// What the loops need of f32 and f64.
trait Real: Copy + Default + Send + Sync + std::ops::AddAssign + std::ops::Mul<Output = Self> {
    fn from_f64(value: f64) -> Self;
    fn magnitude(self) -> Self;
    fn raised(self, power: f64) -> Self;
    /// −1, 0 or 1; `signum` of the standard library has no 0.
    fn sign(self) -> Self;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            fn magnitude(self) -> Self {
                self.abs()
            }
            fn raised(self, power: f64) -> Self {
                self.powf(power as $t)
            }
            fn sign(self) -> Self {
                if self == 0.0 { 0.0 } else { self.signum() }
            }
        }
    };
}
real!(f32);
real!(f64);

/// Sizes of a contiguous `[N,C,H,W]` tensor: channels and positions; N follows from the length.
#[derive(Clone, Copy)]
struct Planes {
    channels: usize,
    positions: usize,
}

fn sum_channels<T: Real>(features: &[T], planes: Planes, term: impl Fn(T) -> T + Sync) -> Vec<T> {
    let Planes { channels, positions } = planes;
    let scale = T::from_f64(1.0 / channels as f64);
    let mut means = vec![T::default(); features.len() / channels];
    means.par_chunks_mut(positions).zip(features.par_chunks(channels * positions)).for_each(|(means, image)| {
        means.par_chunks_mut(TILE).enumerate().for_each(|(tile, means)| {
            for plane in image.chunks_exact(positions) {
                for (sum, &value) in means.iter_mut().zip(&plane[tile * TILE..]) {
                    *sum += term(value);
                }
            }
            for mean in means {
                *mean = *mean * scale;
            }
        });
    });
    means
}

fn forward<T: Real>(features: &[T], planes: Planes, power: f64) -> Vec<T> {
    if power == 2.0 {
        sum_channels(features, planes, |value| value * value)
    } else if power == 1.0 {
        sum_channels(features, planes, T::magnitude)
    } else {
        sum_channels(features, planes, |value| value.magnitude().raised(power))
    }
}

fn scale_by_upstream<T: Real>(
    features: &[T],
    upstream: &[T],
    planes: Planes,
    derivative: impl Fn(T) -> T + Sync,
) -> Vec<T> {
    let Planes { channels, positions } = planes;
    let mut gradient = vec![T::default(); features.len()];
    gradient.par_chunks_mut(positions).zip(features.par_chunks(positions)).enumerate().for_each(
        |(row, (gradient, features))| {
            let upstream = &upstream[row / channels * positions..];
            for ((gradient, &value), &upstream) in gradient.iter_mut().zip(features).zip(upstream) {
                *gradient = derivative(value) * upstream;
            }
        },
    );
    gradient
}

fn backward<T: Real>(features: &[T], upstream: &[T], planes: Planes, power: f64) -> Vec<T> {
    let scale = T::from_f64(power / planes.channels as f64);
    if power == 2.0 {
        scale_by_upstream(features, upstream, planes, |value| scale * value)
    } else if power == 1.0 {
        scale_by_upstream(features, upstream, planes, |value| scale * value.sign())
    } else {
        let slope = |value: T| scale * value.sign() * value.magnitude().raised(power - 1.0);
        scale_by_upstream(features, upstream, planes, slope)
    }
}

fn elements<'a, T>(values: &'a [T], layout: &Layout) -> candle_core::Result<&'a [T]> {
    let (from, to) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("mean_power: strided argument".into()))?;
    Ok(&values[from..to])
}

struct MeanPower {
    power: f64,
}

impl CustomOp1 for MeanPower {
    fn name(&self) -> &'static str {
        "mean_power"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, channels, h, w) = layout.shape().dims4()?;
        let planes = Planes { channels, positions: h * w };
        let means = match storage {
            CpuStorage::F32(values) => CpuStorage::F32(forward(elements(values, layout)?, planes, self.power)),
            CpuStorage::F64(values) => CpuStorage::F64(forward(elements(values, layout)?, planes, self.power)),
            _ => candle_core::bail!("mean_power: features is neither f32 nor f64"),
        };
        Ok((means, (n, 1, h, w).into()))
    }

    fn bwd(&self, features: &Tensor, _means: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let op = MeanPowerBackward { power: self.power };
        Ok(Some(features.apply_op2_no_bwd(&upstream.contiguous()?, &op)?))
    }
}

struct MeanPowerBackward {
    power: f64,
}

impl CustomOp2 for MeanPowerBackward {
    fn name(&self) -> &'static str {
        "mean_power_backward"
    }

    fn cpu_fwd(
        &self,
        features: &CpuStorage,
        features_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, channels, h, w) = features_layout.shape().dims4()?;
        let planes = Planes { channels, positions: h * w };
        let gradient = match (features, upstream) {
            (CpuStorage::F32(features), CpuStorage::F32(upstream)) => {
                let upstream = elements(upstream, upstream_layout)?;
                CpuStorage::F32(backward(elements(features, features_layout)?, upstream, planes, self.power))
            }
            (CpuStorage::F64(features), CpuStorage::F64(upstream)) => {
                let upstream = elements(upstream, upstream_layout)?;
                CpuStorage::F64(backward(elements(features, features_layout)?, upstream, planes, self.power))
            }
            _ => candle_core::bail!("mean_power: the gradient is of another type than the features"),
        };
        Ok((gradient, features_layout.shape().clone()))
    }
}
