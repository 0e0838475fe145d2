//! Training, distillation, evaluation and report.
//!
//! [`run::train`] is the whole job: a teacher, a baseline student and a distilled student with the same seed, data order
//! and schedule, then the table and the page that say what distillation was worth. [`compare::compare`] does the same
//! for many methods and seeds. The `dsd` program is a thin shell around them.

#![deny(clippy::print_stdout, reason = "println! panics where the reader of a pipe has gone; say_line! does not")]

#[macro_use]
mod output;

mod average;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod compare;
pub mod data_command;
pub mod environment;
mod error;
pub mod evaluate;
mod files;
#[cfg(test)]
mod hostile;
pub mod import_model;
pub mod interrupt;
mod journal;
pub mod memory;
pub mod objective;
pub mod optimiser;
pub mod predict;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;
pub mod splits;
pub mod stage;
pub mod start;
mod step;
mod tensors;
mod times;

pub use error::{Error, Result};
