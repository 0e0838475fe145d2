//! Ctrl-C: the first asks the run to end cleanly after the current step, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C, termination and hang-up from now on.
///
/// # Errors
/// The system refuses the handler, or one is installed already.
pub fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step and writing a checkpoint; press Ctrl-C again to stop at once");
    })
}

/// True once a stop was asked for.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
