//! How far two processors are from each other.
//!
//! In a virtual machine a message between two threads takes one of two times for seconds or minutes, presumably as the host
//! has its processors on cores that share a third-level cache or on cores that do not, and some operations take up to twice
//! as long in the second case (docs/benchmarks.md has figures). So each row says which it was.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

/// Messages there and back whose mean counts, and how often; the least one does: the threads may begin on one processor.
const MESSAGES: u32 = 200;
const TIMES: u32 = 10;
/// Looks at a message that has not come before the other thread may have the processor.
const LOOKS: u32 = 1000;

/// Nanoseconds of a message from one thread to another and back, through one cache line.
pub(super) fn round_trip() -> f64 {
    let message = AtomicU32::new(0);
    let wait = |for_what: u32| {
        let mut looks = 0u32;
        while message.load(Ordering::Acquire) != for_what {
            looks += 1;
            if looks.is_multiple_of(LOOKS) { thread::yield_now() } else { std::hint::spin_loop() }
        }
    };
    let mut least = f64::INFINITY;
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..MESSAGES * TIMES {
                wait(2 * number + 1);
                message.store(2 * number + 2, Ordering::Release);
            }
        });
        for time in 0..TIMES {
            let begun = Instant::now();
            for number in time * MESSAGES..(time + 1) * MESSAGES {
                message.store(2 * number + 1, Ordering::Release);
                wait(2 * number + 2);
            }
            least = least.min(begun.elapsed().as_secs_f64() * 1e9 / f64::from(MESSAGES));
        }
    });
    least
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_message_comes_back() {
        let nanoseconds = super::round_trip();
        assert!(nanoseconds > 0.0 && nanoseconds.is_finite(), "{nanoseconds}");
    }
}
