//! What can be wrong with the arguments of a metric.

/// The result of a metric.
pub type Result<T> = std::result::Result<T, Error>;

/// An argument that a metric cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The number of classes does not fit ids of eight bits.
    #[error("confusion matrix: num_classes is {got}, expected 1 to 256")]
    NumClasses {
        /// What came.
        got: usize,
    },
    /// Labels and predictions are not of the same image.
    #[error("confusion matrix: predictions has {predictions} pixels, expected {labels} as labels has")]
    Length {
        /// Pixels of the label map.
        labels: usize,
        /// Pixels of the prediction.
        predictions: usize,
    },
    /// A class id is outside the classes.
    #[error("confusion matrix: {argument} has value {value} at position {position}, expected less than {num_classes}{}",
        match .ignore_label { Some(ignore) => format!(" or the ignored label {ignore}"), None => String::new() })]
    ClassId {
        /// `labels` or `predictions`.
        argument: &'static str,
        /// The value that came.
        value: u8,
        /// Where it stands in the slice, from 0.
        position: usize,
        /// The number of classes.
        num_classes: usize,
        /// The label that would have been left out; none where the argument is the prediction.
        ignore_label: Option<u8>,
    },
    /// Two matrices of different numbers of classes were to be added.
    #[error("confusion matrix: other has {got} classes, expected {expected}")]
    Merge {
        /// Classes of the matrix that was to receive.
        expected: usize,
        /// Classes of the matrix that was to be added.
        got: usize,
    },
    /// There are not as many names as classes.
    #[error("summary: class_names has {got} names, expected {expected}")]
    NameCount {
        /// The number of classes.
        expected: usize,
        /// The number of names.
        got: usize,
    },
    /// A class name occurs twice, so that a table by name would lose a value.
    #[error("summary: class_names has {name:?} twice, expected different names")]
    NameTwice {
        /// The name.
        name: String,
    },
}
