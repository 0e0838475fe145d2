//! Segmentation metrics on plain arrays: exact, mergeable, with a declared rule for classes that do not occur.
//!
//! A [`ConfusionMatrix`] counts pixels as integers; every measure is a function of the counts. The rule of this project
//! for a class that is in neither the labels nor the predictions is to leave it out of the mean IoU
//! ([`AbsentClass::Skip`]); the other rules in use are offered for comparison, since the same predictions score very
//! differently under them.

mod confusion;
mod error;
mod summary;

pub use confusion::{AbsentClass, ConfusionMatrix};
pub use error::{Error, Result};
pub use summary::{ClassValues, Summary};
