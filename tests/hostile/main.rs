//! Bytes from outside, kept and changed at seeded places: each file is read, or refused in one line that names it; nothing
//! panics, hangs or takes more memory than its reader says.
//!
//! A program of its own, because memory is counted for all threads of a program together: one file at a time.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use dsd_tests::cases;
use dsd_tests::formats::{FORMATS, Format};
use dsd_tests::mutants::mutant;
use dsd_train::memory::{self, Counting};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beyond what a reader states, for what surrounds it.
const SLACK: usize = 64 << 20;
/// Seconds of this thread's own work for one file.
const LONGEST: f64 = 1.0;

/// Files of the corpus. A file that broke something is added to it, and stays.
const FILES: usize = 38;

/// What one file cost.
struct Cost {
    accepted: bool,
    bytes: usize,
    seconds: f64,
}

fn read(format: &Format, what: &str, bytes: &[u8]) -> Cost {
    memory::begin();
    let peak = || memory::peak().expect("the allocator counts") as usize;
    let (held, begun) = (peak(), worked());
    let outcome = catch_unwind(AssertUnwindSafe(|| format.read(bytes)));
    let accepted = outcome.unwrap_or_else(|_| panic!("{} {what}: panicked", format.name)).is_ok();
    let cost = Cost { accepted, bytes: peak() - held, seconds: worked() - begun };
    assert!(cost.bytes <= format.holds + SLACK, "{} {what}: {} bytes at once", format.name, cost.bytes);
    assert!(cost.seconds <= LONGEST, "{} {what}: {} s", format.name, cost.seconds);
    cost
}

/// Seconds that this thread has worked: other programs' work does not count. 0 where the system does not say.
fn worked() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

#[test]
fn mutants_of_every_format_are_read_or_refused_within_bounds() {
    let (count, mut files) = (cases(20_000, 200_000), 0);
    for format in &FORMATS {
        let corpus = format.corpus();
        for (name, bytes) in &corpus {
            // What is refused says so in its name: it broke something once.
            assert_eq!(read(format, name, bytes).accepted, !name.starts_with("refused"), "{} {name}", format.name);
            files += 1;
        }
        let (mut refused, mut bytes, mut seconds) = (0u64, 0, 0f64);
        for index in 0..count {
            let pick = |at: u64| &corpus[at as usize % corpus.len()];
            let ((name, original), (_, other)) = (pick(index), pick(index / corpus.len() as u64));
            let cost = read(format, &format!("{name} {index}"), &mutant(original, other, name, index));
            refused += u64::from(!cost.accepted);
            bytes = bytes.max(cost.bytes);
            seconds = seconds.max(cost.seconds);
        }
        assert!(refused > count / 10, "{}: only {refused} of {count} were refused", format.name);
        let mib = bytes as f64 / f64::from(1 << 20);
        println!(
            "figure F1 mutants_{} {count} {refused} refused, at most {mib:.1} MiB and {:.0} ms each",
            format.name,
            1000.0 * seconds
        );
    }
    assert_eq!(files, FILES);
    println!("figure F2 corpus_files {files}");
}
