//! CPU training kernels for convolutional segmentation networks: slices in, slices out.
//!
//! No tensor library, no files, no randomness, no clock. Every kernel has a plain version, generic over f32 and f64,
//! that reads like the formula (`reference` or the generic function itself); the fast f32 version is tested against it
//! in f64. Layout is NCHW, row-major. Work is split over the rayon pool of the caller in a way that does not depend on
//! the number of threads, so results are the same bits for one thread and for many.

pub mod activation;
pub mod avg_pool2d;
pub mod batch_norm;
pub mod conv2d;
pub mod conv_transpose2d;
pub mod cross_entropy;
mod error;
mod float;
pub(crate) mod fresh;
pub mod gemm;
pub mod join;
pub(crate) mod lanes;
pub mod max_pool2d;
pub mod optimiser;
pub(crate) mod parallel;
mod prefetch;
pub mod resize;
pub mod scale_channels;
pub(crate) mod simd;

pub use error::{Error, Result};
pub use float::Float;
pub use fresh::zeros;
pub use simd::check_environment;
