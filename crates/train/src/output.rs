//! Standard output, which may be a pipe whose reader has seen enough.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Writes to standard output. What nobody reads any more (`dsd models | head -1`) is no error: the work goes on to its end.
///
/// # Errors
/// Any other failure, such as a full disk.
pub(crate) fn write(text: Arguments<'_>) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// `print!` that gives a result: see [`write`](crate::output::write).
macro_rules! say {
    ($($text:tt)*) => { $crate::output::write(format_args!($($text)*)) };
}

/// `println!` that gives a result: see [`write`](crate::output::write).
macro_rules! say_line {
    ($($text:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($text)*))) };
}
