//! Task losses: what a network is trained on with labels alone.
//!
//! Logits are `[N,C,H,W]`, f32 or f64, labels `[N,H,W]` u8: class ids below C or the ignored label. Pixels with the
//! ignored label are left out of sums, counts, sorting and mining alike, whatever their logits are; where no pixel counts,
//! a loss is 0 with zero gradient. A label that is neither is an error that names it and its pixel.
//!
//! Each loss is one node of the graph with a closed-form gradient. The backward pass computes the softmax again instead
//! of keeping it. Sums are f64 in a fixed order: the same bits for any number of threads.

mod dice;
mod focal;
mod labels;
mod lovasz_softmax;
pub(crate) mod node;
mod ohem;
mod ssl;

pub use dice::{Dice, dice};
pub use dsd_ops::{CrossEntropyOptions, cross_entropy};
pub use focal::{Focal, focal};
pub use lovasz_softmax::{LovaszSoftmax, lovasz_softmax};
pub use ohem::{Keep, Ohem, ohem_cross_entropy};
use serde::{Deserialize, Serialize};
pub use ssl::{Deviation, EntropyMean, Mining, Padding, Probability, Ssl, ssl, ssl_distillation, structure_error};

/// Which classes a mean over classes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassSet {
    /// Those that a counted pixel is labelled with, within the [`Scope`].
    Present,
    /// All C; a class that is absent is pulled to probability 0.
    All,
}

/// What the statistics of a class are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All images of the batch at once.
    Batch,
    /// Each image alone; then the mean over the images that have a counted pixel.
    Image,
}
