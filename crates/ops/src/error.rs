//! What can be wrong with the arguments of an operation.

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An argument that an operation cannot work with, or an error of the tensor library below.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("{op}: {argument} has shape {got:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// What is allowed, in words or numbers.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{op}: {argument} is {got}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// The type that came.
        got: &'static str,
    },
    /// A number is out of its range.
    #[error("{op}: {argument} is {got}, expected {expected}")]
    Param {
        /// The operation.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// What is allowed, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] dsd_kernels::Error),
    /// candle refused something.
    #[error(transparent)]
    Candle(candle_core::Error),
}

/// Without the backtrace, which the tensor library takes with RUST_BACKTRACE set and prints as part of its message.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::WithBacktrace { inner, .. } => Self::from(*inner),
            other => Self::Candle(other),
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}
