//! What can go wrong with a network, its parameters and its files.

use std::fmt;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A configuration, a set of weights or a file that cannot be used, or an error of a layer below.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of a network is out of its range.
    #[error("model configuration: {field} is {got}, expected {expected}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is allowed.
        expected: String,
        /// What came.
        got: String,
    },
    /// No variant has this name.
    #[error("no model is called {name:?}; there are {known}")]
    UnknownVariant {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// Weights do not belong to the network.
    #[error("weights do not fit the network: {0}")]
    Weights(WeightMismatch),
    /// A saved file has weights that do not belong to the network that it names.
    #[error("{}: weights do not fit the network: {mismatch}", path.display())]
    FileWeights {
        /// The weights file.
        path: PathBuf,
        /// What does not fit.
        mismatch: WeightMismatch,
    },
    /// The contents of a file are not what they have to be.
    #[error("{}: {what} is {got}, expected {expected}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// What is allowed.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A file or folder could not be read or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A source of weights cannot be used.
    #[error("{origin}: {message}")]
    Source {
        /// Where the weights are: a path, or a place on the hub.
        origin: String,
        /// What is wrong, and what can be done.
        message: String,
    },
    /// An operation refused its arguments.
    #[error(transparent)]
    Operation(#[from] dsd_ops::Error),
    /// candle refused something.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::UnknownVariant`] that lists the variants there are.
    #[must_use]
    pub fn unknown_variant(name: &str) -> Self {
        let names: Vec<&str> = crate::variants().iter().map(|variant| variant.name).collect();
        Self::UnknownVariant { name: name.to_string(), known: names.join(", ") }
    }

    /// The names in a file that somebody else wrote may hold line ends: shown, they are escaped.
    pub(crate) fn source(origin: &str, message: impl ToString) -> Self {
        let shown = |character: char| {
            if character.is_control() { character.escape_default().to_string() } else { character.to_string() }
        };
        Self::Source { origin: origin.to_string(), message: message.to_string().chars().map(shown).collect() }
    }

    pub(crate) fn config(field: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Config { field, expected: expected.to_string(), got: got.to_string() }
    }
}

/// The differences between the parameters of a network and a set of named tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightMismatch {
    /// Names that the network has and the tensors lack.
    pub missing: Vec<String>,
    /// Names that the network does not know.
    pub unexpected: Vec<String>,
    /// Name, expected shape, shape that came.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl WeightMismatch {
    /// Compares the shapes that a network has with those that came; both by name.
    pub(crate) fn between<'a>(
        expected: impl Iterator<Item = (&'a str, &'a [usize])>,
        got: &std::collections::BTreeMap<String, candle_core::Tensor>,
    ) -> Self {
        let mut mismatch = Self::default();
        let mut known = std::collections::BTreeSet::new();
        for (name, shape) in expected {
            known.insert(name);
            match got.get(name) {
                None => mismatch.missing.push(name.to_string()),
                Some(tensor) if tensor.dims() != shape => {
                    mismatch.wrong_shape.push((name.to_string(), shape.to_vec(), tensor.dims().to_vec()));
                }
                Some(_) => {}
            }
        }
        mismatch.unexpected = got.keys().filter(|name| !known.contains(name.as_str())).cloned().collect();
        mismatch
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }
}

/// How many names of one kind a message lists before it only counts.
const LISTED: usize = 5;

fn list(f: &mut fmt::Formatter<'_>, first: &mut bool, kind: &str, items: &[String]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let separator = if std::mem::take(first) { "" } else { "; " };
    write!(f, "{separator}{} {kind}: {}", items.len(), items[..items.len().min(LISTED)].join(", "))?;
    if items.len() > LISTED { write!(f, " and {} more", items.len() - LISTED) } else { Ok(()) }
}

impl fmt::Display for WeightMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong: Vec<String> = self
            .wrong_shape
            .iter()
            .map(|(name, expected, got)| format!("{name} has shape {got:?}, expected {expected:?}"))
            .collect();
        let mut first = true;
        list(f, &mut first, "of a wrong shape", &wrong)?;
        list(f, &mut first, "missing", &self.missing)?;
        list(f, &mut first, "unexpected", &self.unexpected)
    }
}
