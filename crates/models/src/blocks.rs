//! Blocks of a network that may be computed again in the backward pass.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::Tensor;

use crate::multiply_adds::is_counting;
use crate::{Mode, Result};

thread_local! {
    static RECOMPUTE: Cell<bool> = const { Cell::new(false) };
}

/// A part of a network from one tensor to another.
pub(crate) trait Block: Send + Sync + 'static {
    /// `[N,C,H,W]` to another such tensor.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor>;
}

/// Runs `forward` so that the blocks of a network that trains keep their inputs alone and are computed again in the
/// backward pass: less memory, more time, the same result up to the rounding of sums. Gradients then come from [`dsd_ops::backward`].
///
/// Blocks are those of ResNets and of the mobile backbones; other parts keep what they always keep.
pub fn with_recomputed_blocks<T>(forward: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECOMPUTE.set(self.0);
        }
    }
    let _restore = Restore(RECOMPUTE.replace(true));
    forward()
}

/// A block's result, in the way that [`with_recomputed_blocks`] asks for.
pub(crate) fn run(block: &Arc<impl Block>, x: &Tensor, mode: Mode) -> Result<Tensor> {
    if !RECOMPUTE.get() || mode == Mode::Eval || is_counting() {
        return block.forward(x, mode);
    }
    let block = Arc::clone(block);
    let part = move |x: &Tensor| block.forward(x, mode).map_err(candle_core::Error::wrap);
    Ok(dsd_ops::recompute(x, Arc::new(part))?)
}
