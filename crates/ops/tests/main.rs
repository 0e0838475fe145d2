//! The proof of the operations: gradients against central differences, values and gradients against PyTorch, the fast
//! f32 kernels against f64, strided tensors against contiguous ones, and what a person can check by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

mod agreement;
mod cases;
mod gradients;
mod hand;
mod inputs;
mod reference;
mod strided;
