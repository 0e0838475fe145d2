//! What can be wrong with the arguments of a kernel.

/// The result of a kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// An argument that a kernel cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice has another length than the sizes ask for.
    #[error("{op}: {argument} has {got} elements, expected {expected}")]
    Length {
        /// The kernel.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Elements that the sizes ask for.
        expected: usize,
        /// Elements that came.
        got: usize,
    },
    /// A size or setting is out of its range.
    #[error("{op}: {argument} is {got}, expected {expected}")]
    Param {
        /// The kernel.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// What is allowed, in words.
        expected: String,
        /// What came.
        got: String,
    },
}

/// Refuses a slice of the wrong length.
pub(crate) fn check_length(op: &'static str, argument: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Length { op, argument, expected, got }) }
}

/// An [`Error::Param`].
pub(crate) fn param(op: &'static str, argument: &'static str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Param { op, argument, expected: expected.to_string(), got: got.to_string() }
}
