//! Differentiable training operations for candle, with correct gradients for every input.
//!
//! Many of candle 0.11's own gradients are wrong or missing for what a segmentation network needs (pooling, resize,
//! grouped and strided convolution, batch norm with one value). These operations replace them on the CPU, in f32 (fast
//! kernels of `dsd-kernels`) and f64 (plain reference). Tensors are `[N,C,H,W]`, inputs may be strided.
//!
//! Allocation: a training step allocates and frees hundreds of megabytes; a program that trains should have an allocator
//! that keeps freed memory, gives blocks that begin cache lines (64 bytes) and asks for huge pages: thin networks train a
//! tenth faster for the last two. It should start with `CANDLE_BARRIER_POOL_SPIN_LIMIT=1` in its environment, because the
//! threads of candle's elementwise operations otherwise spin for a third of a millisecond on the processors that the next
//! operation needs. The `dsd` program does all of it (`dsd_train::memory`); this crate neither sets an allocator nor a
//! variable.

pub mod check;
mod error;

mod activation;
mod add_relu;
mod batch_norm;
mod conv2d;
mod conv_transpose2d;
mod convolution;
mod cross_entropy;
mod dropout;
pub mod gradcheck;
mod join;
mod pool;
mod profile;
mod recompute;
mod resize;
mod scale_channels;
mod storage;
mod tape;

pub use error::{Error, Result};

pub use activation::*;
pub use add_relu::*;
pub use batch_norm::*;
pub use conv_transpose2d::*;
pub use conv2d::*;
pub use cross_entropy::*;
pub use dropout::*;
pub use join::*;
pub use pool::*;
pub use profile::{Profile, Timing};
pub use recompute::{Part, is_recomputing, recompute};
pub use resize::*;
pub use scale_channels::*;
pub use tape::{Tape, backward};
