//! Decoders: from the features of a backbone to the one that is classified.

mod pspnet;

pub use pspnet::{PYRAMID_BINS, PyramidPooling, PyramidPoolingConfig};

use crate::{Feature, Mode, Result};

/// A network that merges the features of a backbone.
pub trait Decoder: Send + Sync {
    /// The features of a backbone, in order → the feature `head`, of [`Decoder::out_channels`] channels.
    ///
    /// # Errors
    /// Features that are not those of the backbone it was made for.
    fn forward(&self, features: &[Feature], mode: Mode) -> Result<Feature>;

    /// Channels of the result.
    fn out_channels(&self) -> usize;
}
