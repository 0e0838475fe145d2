//! Distillation and structure losses for semantic segmentation, on candle tensors.
//!
//! A loss takes tensors and settings and returns a scalar; it knows no model, data set or recipe. Teacher tensors are
//! detached here, so a gradient reaches the student alone. Teacher and student may differ in channels, strides and
//! depth: nothing has parameters of its own.
//!
//! | loss | what it compares |
//! |---|---|
//! | [`psd`] | where attention moves from one layer to a deeper one |
//! | [`csd`] | how the class maps of an image correlate |
//! | [`dsd`] | the weighted sum of both, with named presets |
//! | [`pixel_kd`] | the class distribution at each position |
//!
//! Tensors are f32 or f64 and may be strided. Pixel masks (`valid`) are u8 `[N,H,W]`, 1 counted, 0 ignored, at any
//! resolution, usually the labels': they are brought to the grid of the comparison by nearest neighbour.

mod attention;
mod csd;
mod dsd;
mod mask;
mod mean_power;
mod pixel_kd;
mod psd;
mod unit;

pub use attention::{attention_map, residual_attention};
pub use csd::{Csd, SoftmaxAxis, category_correlation, csd};
pub use dsd::{Dsd, DsdLoss, NetworkOutput, dsd};
pub use dsd_ops::{Error, Result};
pub use pixel_kd::{PixelKd, pixel_kd};
pub use psd::{LayerPairs, MapSize, Psd, PsdReduction, REFERENCE_POSITIONS, psd};
