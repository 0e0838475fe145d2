//! The table of a comparison, as Markdown and as what the page shows.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::outcome::{MethodOutcome, Outcome};
use super::statistics::Sample;
use crate::Result;
use crate::report::{percent, signed};

/// A method's row, every figure as text.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    terms: String,
    seeds: usize,
    steps: u64,
    last: String,
    best: String,
    difference: String,
    interval: String,
    seconds: String,
    memory: String,
    multiply_adds: String,
}

/// The table of what is finished in the folder of a comparison, as Markdown, with a sentence on what it says.
///
/// # Errors
/// A file that is missing or damaged, by name.
pub fn table(folder: &Path) -> Result<String> {
    let outcome = Outcome::read(folder)?;
    let mut text = String::from(
        "| method | terms, share of the gradient | seeds | steps | mIoU %, last step | best mIoU % | difference | 95 % interval | s/step | MiB | G multiply-adds/step |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows(&outcome) {
        let cells = [
            row.name,
            row.terms,
            row.seeds.to_string(),
            row.steps.to_string(),
            row.last,
            row.best,
            row.difference,
            row.interval,
            row.seconds,
            row.memory,
            row.multiply_adds,
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    let _ = writeln!(text, "\n{} {}", verdict(&outcome), key(&outcome));
    Ok(text)
}

pub(super) fn rows(outcome: &Outcome) -> Vec<Row> {
    let reference = outcome.reference();
    outcome
        .methods
        .iter()
        .map(|method| Row {
            name: method.name.clone(),
            terms: terms(method),
            seeds: method.runs.len(),
            steps: method.steps,
            last: with_deviation(method.last_miou),
            best: with_deviation(method.best_miou),
            difference: signed(method.difference.map(|sample| 100.0 * sample.mean)),
            interval: interval(method.difference),
            seconds: method.seconds_per_step.map_or("–".to_string(), |seconds| format!("{seconds:.3}")),
            memory: against(method, reference, |method| Some(method.peak_bytes? as f64 / f64::from(1 << 20)), 0),
            multiply_adds: against(method, reference, |method| Some(method.multiply_adds.total() as f64 / 1e9), 2),
        })
        .collect()
}

/// What can be said with confidence, in a sentence.
pub(super) fn verdict(outcome: &Outcome) -> String {
    let all = outcome.seeds.len();
    let finished = outcome.finished_seeds();
    let so_far = if finished < all { format!("{finished} of {all} seeds so far. ") } else { String::new() };
    if !outcome.methods.iter().any(|method| method.difference.is_some_and(|sample| sample.n > 1)) {
        return format!("{so_far}One seed says nothing about chance: no deviations, no intervals.");
    }
    let clear: Vec<String> = outcome
        .methods
        .iter()
        .filter_map(|method| {
            let difference = method.difference?;
            let [low, high] = difference.interval?;
            let name = || format!("{} ({} points)", method.name, signed(Some(100.0 * difference.mean)));
            (low > 0.0 || high < 0.0).then(name)
        })
        .collect();
    let against = &outcome.baseline;
    if clear.is_empty() {
        format!("{so_far}No difference to {against} has a 95 % interval without 0: all of them can be chance.")
    } else {
        format!("{so_far}Differences to {against} whose 95 % interval leaves out 0: {}.", clear.join(", "))
    }
}

/// How the figures are meant.
pub(super) fn key(outcome: &Outcome) -> String {
    let seeds: Vec<String> = outcome.seeds.iter().map(ToString::to_string).collect();
    let teacher = match &outcome.teacher {
        Some(teacher) => format!(" The teacher has {} %.", percent(teacher.miou)),
        None => String::new(),
    };
    format!(
        "Seeds {}. Mean ± standard deviation; differences to {} in points of the last step's mIoU, paired by seed, with \
         Student's interval; brackets: more than {}.{teacher}",
        seeds.join(", "),
        outcome.baseline,
        outcome.baseline
    )
}

/// The terms with their shares of the gradient, the task's too; the terms alone where no share was measured.
fn terms(method: &MethodOutcome) -> String {
    if method.terms.is_empty() {
        return "–".to_string();
    }
    if method.shares.is_empty() {
        return method.terms.join(", ");
    }
    let shown = |(term, share): (&String, &f64)| format!("{term} {:.0} %", 100.0 * share);
    method.shares.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn with_deviation(sample: Option<Sample>) -> String {
    match sample {
        Some(Sample { mean, std: Some(std), .. }) => format!("{} ± {}", percent(Some(mean)), percent(Some(std))),
        Some(Sample { mean, .. }) => percent(Some(mean)),
        None => percent(None),
    }
}

pub(super) fn interval(sample: Option<Sample>) -> String {
    match sample.and_then(|sample| sample.interval) {
        Some(ends) => {
            let [low, high] = ends.map(|end| signed(Some(100.0 * end)));
            format!("{low} … {high}")
        }
        None => "–".to_string(),
    }
}

/// A figure and, in brackets, what it has more than the baseline's.
fn against(
    method: &MethodOutcome,
    reference: Option<&MethodOutcome>,
    figure: impl Fn(&MethodOutcome) -> Option<f64>,
    decimals: usize,
) -> String {
    let Some(own) = figure(method) else { return "–".to_string() };
    match reference.filter(|reference| reference.name != method.name).and_then(&figure) {
        Some(other) => {
            let sign = if own < other { "−" } else { "+" };
            format!("{own:.decimals$} ({sign}{:.decimals$})", (own - other).abs())
        }
        None => format!("{own:.decimals$}"),
    }
}
