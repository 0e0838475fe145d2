//! What every network takes and returns.

use candle_core::Tensor;

use crate::Result;

/// Whether a forward pass trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics are used and left alone; no dropout.
    Eval,
    /// Batch statistics are used and the running ones updated; dropout draws from (seed, step, layer).
    Train {
        /// The seed of the run.
        seed: u64,
        /// The number of the training step.
        step: u64,
    },
}

/// A tensor inside a network that a loss may ask for by name.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Its name, such as `stage3`, `head` or `logits`.
    pub name: String,
    /// Input pixels per position along each axis.
    pub stride: usize,
    /// `[N,C,H,W]`.
    pub tensor: Tensor,
}

impl Feature {
    /// A feature of this name, stride and value.
    #[must_use]
    pub fn new(name: &str, stride: usize, tensor: Tensor) -> Self {
        Self { name: name.to_string(), stride, tensor }
    }
}

/// The result of a forward pass.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[N, classes, H, W]` at the resolution of the head; the caller resizes (bilinear, `align_corners` = true).
    pub logits: Tensor,
    /// The logits of the auxiliary head, where the network has one.
    pub aux_logits: Option<Tensor>,
    /// All named features from input to output, `logits` (and `aux_logits`) among them.
    pub features: Vec<Feature>,
}

impl Output {
    /// The feature of this name.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

/// A segmentation network.
pub trait Segmenter: Send + Sync {
    /// Classifies every position of a batch.
    ///
    /// # Shapes
    /// images: `[N,3,H,W]` in the element type of the parameters, RGB, normalised as the network was trained.
    ///
    /// # Errors
    /// A shape or element type that does not fit, or an error of the tensor library.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Output>;
}
