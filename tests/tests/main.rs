//! Whole-program tests: the built `dsd`, from the command line to the files that it leaves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

mod bench;
mod camvid;
mod comparison;
mod crash;
mod evaluators;
mod folders;
mod imports;
mod models;
mod program;
mod refusals;
mod resume;
mod smoke;
mod soak;
mod starts;
mod steps;
