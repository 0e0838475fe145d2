//! Decoders: from the features of a backbone to the one that is classified.

mod aspp;
mod fcn;
mod lraspp;
mod pspnet;

pub use aspp::{Aspp, AsppConfig};
pub use fcn::Reduction;
pub use lraspp::{LrAspp, LrAsppConfig};
pub use pspnet::{PYRAMID_BINS, PyramidPooling, PyramidPoolingConfig};

use crate::{Error, Feature, Mode, Result};

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

/// The feature that all decoders start from: the last.
fn deepest(features: &[Feature]) -> Result<&Feature> {
    features.last().ok_or_else(|| Error::config("backbone", "at least one feature", 0))
}
