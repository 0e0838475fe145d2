//! Where the time of a step goes: this crate's operations, timed one by one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use candle_core::Tensor;

thread_local! {
    static CURRENT: RefCell<Option<BTreeMap<Key, Timing>>> = const { RefCell::new(None) };
    /// What the calls inside the running one have taken.
    static INSIDE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

type Key = (&'static str, Vec<Vec<usize>>);

/// What the calls of one operation on inputs of one shape took, without those inside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The operation's name in candle's graph; `candle` for what candle's backward pass goes through, `sum of gradients`
    /// where a tensor was used more than once.
    pub operation: &'static str,
    /// The shapes of its inputs.
    pub inputs: Vec<Vec<usize>>,
    /// Calls forward; one that is [recomputed](crate::recompute) counts twice.
    pub calls: usize,
    /// All of them together.
    pub forward: Duration,
    /// The backward passes on a [`Tape`](crate::Tape); those in candle's graph are part of `candle`.
    pub backward: Duration,
}

/// Times this thread's operations while it lives. One lives at a time; an inner one takes over and leaves nothing behind.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let profile = dsd_ops::Profile::start();
/// dsd_ops::relu(&Tensor::new(&[[[[1f32]]]], &Device::Cpu)?)?;
/// let timings = profile.timings();
/// assert_eq!((timings[0].operation, timings[0].calls), ("relu", 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "operations are timed while it lives"]
pub struct Profile {
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Profile {
    /// Begins to time.
    pub fn start() -> Self {
        CURRENT.set(Some(BTreeMap::new()));
        Self { thread: PhantomData }
    }

    /// What has been timed, by operation and shapes.
    #[must_use]
    pub fn timings(&self) -> Vec<Timing> {
        CURRENT.with_borrow(|timings| timings.as_ref().map_or_else(Vec::new, |found| found.values().cloned().collect()))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Runs a forward pass.
pub(crate) fn forward<R>(operation: &'static str, inputs: &[&Tensor], run: impl FnOnce() -> R) -> R {
    timed(operation, inputs.iter().copied(), run, |timing, own| {
        timing.calls += 1;
        timing.forward += own;
    })
}

/// Runs a backward pass.
pub(crate) fn backward<R>(operation: &'static str, inputs: &[Tensor], run: impl FnOnce() -> R) -> R {
    timed(operation, inputs.iter(), run, |timing, own| timing.backward += own)
}

fn timed<'a, R>(
    operation: &'static str,
    inputs: impl Iterator<Item = &'a Tensor>,
    run: impl FnOnce() -> R,
    add: impl FnOnce(&mut Timing, Duration),
) -> R {
    if CURRENT.with_borrow(Option::is_none) {
        return run();
    }
    let inputs: Vec<Vec<usize>> = inputs.map(|input| input.dims().to_vec()).collect();
    let outside = INSIDE.replace(Duration::ZERO);
    let begun = Instant::now();
    let result = run();
    let whole = begun.elapsed();
    let own = whole.saturating_sub(INSIDE.replace(outside + whole));
    CURRENT.with_borrow_mut(|timings| {
        if let Some(timings) = timings {
            let timing = timings.entry((operation, inputs.clone())).or_insert_with(|| Timing {
                operation,
                inputs,
                calls: 0,
                forward: Duration::ZERO,
                backward: Duration::ZERO,
            });
            add(timing, own);
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use candle_core::{DType, Device, Tensor, Var};

    use super::{Profile, Timing};
    use crate::{Conv2dOptions, Tape, conv2d, recompute, relu};

    #[test]
    fn every_pass_is_counted_once_where_it_ran() {
        let x = Var::ones((1, 2, 5, 5), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::ones((2, 2, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let begun = Instant::now();
        let profile = Profile::start();
        let tape = Tape::start();
        let inner = weight.clone();
        let part = move |x: &Tensor| Ok(conv2d(x, &inner, None, Conv2dOptions::default())?);
        let y = recompute(&relu(x.as_tensor()).unwrap(), Arc::new(part)).unwrap();
        let loss = relu(&y).unwrap().sum_all().unwrap();
        tape.finish(&loss).unwrap();
        let whole = begun.elapsed();
        let timings = profile.timings();
        let of = |operation: &str| timings.iter().filter(|timing| timing.operation == operation).collect::<Vec<_>>();
        // The convolution runs forward, and again in the backward pass.
        let [convolution] = of("conv2d")[..] else { panic!("{timings:?}") };
        assert_eq!((convolution.calls, &convolution.inputs[1]), (2, &vec![2, 2, 3, 3]));
        // Two shapes went through relu, back too.
        assert_eq!(of("relu").iter().map(|timing| timing.calls).collect::<Vec<_>>(), [1, 1]);
        assert!(of("relu").iter().all(|timing| timing.backward > Duration::ZERO), "{timings:?}");
        assert!(of("recompute")[0].backward > Duration::ZERO);
        let told: Duration = timings.iter().map(|Timing { forward, backward, .. }| *forward + *backward).sum();
        assert!(told <= whole, "{told:?} of {whole:?}: what ran inside counts once");
        drop(profile);
        assert!(Profile::start().timings().is_empty());
    }
}
