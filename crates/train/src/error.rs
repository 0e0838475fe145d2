//! What can go wrong in training, in one line each.

use std::path::{Path, PathBuf};

/// The result of training.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a run, an evaluation or a prediction stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A recipe is wrong.
    #[error("recipe {recipe}: {message}")]
    Recipe {
        /// The recipe's name or path.
        recipe: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A file or folder could not be read or written.
    #[error("{path}: {message}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A term of the loss or the gradient is not a number.
    #[error(
        "{role}, step {step}: the loss term {term} is {value}; {place}; lower the learning rate or the term's weight, or look at the batch ({samples})"
    )]
    NotFinite {
        /// Which network was being trained.
        role: String,
        /// The step, counted from 1.
        step: u64,
        /// The term by name.
        term: String,
        /// Its value.
        value: f64,
        /// Where the first number that is not finite came up.
        place: Box<str>,
        /// The names of the samples in the batch.
        samples: String,
    },
    /// The gradient's norm is not a number.
    #[error("the gradient's norm is {norm}; lower the learning rate")]
    GradientNorm {
        /// The norm over all parameters.
        norm: f64,
    },
    /// The user asked to stop; a checkpoint is written.
    #[error("stopped by request at step {step} of {role}; continue with --resume --out {folder}")]
    Interrupted {
        /// Which network was being trained.
        role: String,
        /// Steps that are finished and saved.
        step: u64,
        /// The run's folder.
        folder: PathBuf,
    },
    /// A combination of settings cannot work.
    #[error("{0}")]
    Setting(String),
    /// The data crate refused something.
    #[error(transparent)]
    Data(#[from] dsd_data::Error),
    /// The metrics crate refused something.
    #[error(transparent)]
    Metrics(#[from] dsd_metrics::Error),
    /// The models crate refused something.
    #[error(transparent)]
    Models(#[from] dsd_models::Error),
    /// An operation refused its arguments.
    #[error(transparent)]
    Ops(#[from] dsd_ops::Error),
    /// candle refused something.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An error about a file.
    pub(crate) fn file(path: &Path, message: impl ToString) -> Self {
        Self::File { path: path.to_path_buf(), message: message.to_string() }
    }
}
