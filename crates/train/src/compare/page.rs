//! The page of a comparison: `comparison.html`, one self-contained file, a function of the folder alone.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;

use super::outcome::{MethodOutcome, Outcome};
use super::statistics::Sample;
use super::table;
use crate::environment::Environment;
use crate::journal::{self, Line};
use crate::recipe::{Recipe, place};
use crate::report::chart::{Chart, Curve};
use crate::report::{drawn, model_name, signed, write_page};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("page.html");

/// The baseline's colour in every chart.
const BASELINE: &str = "#8a8f98";

/// The other methods' colours, in order; again from the start where there are more.
const COLOURS: [&str; 12] = [
    "#d1495b", "#3f7cac", "#e09f3e", "#5a9e6f", "#8e6bb5", "#e07a3f", "#2fa4a0", "#c06c9b", "#7a8f2a", "#6a7fdb",
    "#a8763e", "#c94c94",
];

/// A row of the first table.
#[derive(Serialize)]
struct PageRow {
    #[serde(flatten)]
    row: table::Row,
    colour: &'static str,
    mark: Option<Mark>,
}

/// A difference with its interval on a line from −reach to +reach, in percent of the line's length.
#[derive(Serialize)]
struct Mark {
    at: f64,
    from: f64,
    length: f64,
    /// `gain`, `fall`, or nothing where the interval holds 0.
    side: &'static str,
}

/// A class's row: a cell for each method but the baseline.
#[derive(Serialize)]
struct ClassRow {
    name: String,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    interval: String,
    gain: bool,
    /// Strength of the background, 0–100.
    strength: f64,
}

/// Points of IoU at which a cell of the table by class has its full colour.
const FULL: f64 = 10.0;

/// Writes the page of what is finished in a folder.
pub(super) fn write(folder: &Path, outcome: &Outcome) -> Result<()> {
    let text = |name: &str| -> Result<String> {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))
    };
    let environment: Environment = serde_json::from_str(&text("environment.json")?)
        .map_err(|error| Error::file(&folder.join("environment.json"), error))?;
    let recipe = Recipe::of_run(folder, &[])?;
    let reach = reach(outcome);
    let rows: Vec<PageRow> = table::rows(outcome)
        .into_iter()
        .zip(&outcome.methods)
        .zip(colours(outcome))
        .map(|((row, method), colour)| PageRow { row, colour, mark: method.difference.map(|d| mark(d, reach)) })
        .collect();
    let others: Vec<&MethodOutcome> =
        outcome.methods.iter().filter(|method| !method.class_differences.is_empty()).collect();
    let names: Vec<&str> = others.iter().map(|method| method.name.as_str()).collect();
    let (together, single) = charts(folder, outcome)?;
    let context = minijinja::context! {
        name => recipe.name.as_str(),
        description => recipe.description.as_str(),
        verdict => table::verdict(outcome),
        key => table::key(outcome),
        baseline => outcome.baseline.as_str(),
        reach => format!("{reach:.0}"),
        rows => Value::from(Serde(rows)),
        others => Value::from(Serde(&names)),
        classes => Value::from(Serde(classes(&others))),
        full => format!("{FULL:.0}"),
        together => drawn(&[together]),
        single => drawn(&single),
        teacher => model_name(&recipe.teacher.model),
        student => model_name(&recipe.student.model),
        recipe => text("recipe.toml")?,
        environment => Value::from(Serde(&environment)),
        seed => recipe.seed,
        dataset => recipe.data.dataset.as_str(),
        split => recipe.data.val_split.as_str(),
    };
    write_page(&folder.join("comparison.html"), TEMPLATE, context)
}

fn colours(outcome: &Outcome) -> Vec<&'static str> {
    let mut colours = COLOURS.iter().cycle();
    let mut next = |method: &MethodOutcome| {
        if method.name == outcome.baseline { BASELINE } else { colours.next().copied().unwrap_or(BASELINE) }
    };
    outcome.methods.iter().map(&mut next).collect()
}

/// The points to which the line of differences reaches on both sides: all means and most of the intervals are on it.
fn reach(outcome: &Outcome) -> f64 {
    let means = outcome.methods.iter().filter_map(|method| Some(100.0 * method.difference?.mean.abs()));
    let mut ends: Vec<f64> = outcome
        .methods
        .iter()
        .filter_map(|method| method.difference?.interval)
        .map(|[low, high]| 100.0 * low.abs().max(high.abs()))
        .collect();
    ends.sort_by(f64::total_cmp);
    let typical = ends.get(ends.len() / 2).map_or(0.0, |end| 1.5 * end);
    means.fold(typical, f64::max).ceil().max(1.0)
}

fn mark(difference: Sample, reach: f64) -> Mark {
    let position = |value: f64| (50.0 + 50.0 * 100.0 * value / reach).clamp(0.0, 100.0);
    let [low, high] = difference.interval.unwrap_or([difference.mean; 2]);
    let clear = difference.interval.is_some() && (low > 0.0 || high < 0.0);
    Mark {
        at: position(difference.mean),
        from: position(low),
        length: position(high) - position(low),
        side: match (clear, difference.mean >= 0.0) {
            (false, _) => "",
            (true, true) => "gain",
            (true, false) => "fall",
        },
    }
}

fn classes(methods: &[&MethodOutcome]) -> Vec<ClassRow> {
    let Some(first) = methods.first() else { return Vec::new() };
    let cell = |method: &MethodOutcome, index: usize| {
        let difference = method.class_differences.get(index).and_then(|class| class.difference);
        let points = difference.map(|sample| 100.0 * sample.mean);
        Cell {
            text: signed(points),
            interval: table::interval(difference),
            gain: points.is_some_and(|points| points >= 0.0),
            strength: points.map_or(0.0, |points| (60.0 * points.abs() / FULL).min(60.0)),
        }
    };
    let row = |(index, class): (usize, &super::ClassDifference)| ClassRow {
        name: class.class.clone(),
        cells: methods.iter().map(|method| cell(method, index)).collect(),
    };
    first.class_differences.iter().enumerate().map(row).collect()
}

/// Validation mIoU of all methods in one chart, and of each beside the baseline in charts with the same axes.
fn charts(folder: &Path, outcome: &Outcome) -> Result<(Chart, Vec<Chart>)> {
    let mut curves = Vec::with_capacity(outcome.methods.len());
    for (method, colour) in outcome.methods.iter().zip(colours(outcome)) {
        let mut values: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for run in &method.runs {
            for line in journal::read(&folder.join(place(&method.name, run.seed)))? {
                if let Line::Evaluation { step, miou, .. } = line {
                    values.entry(step).or_default().push(100.0 * miou);
                }
            }
        }
        let mut curve = Curve::new(&method.name, colour);
        for (step, values) in values {
            let step = step as f64;
            curve.points.push((step, values.iter().sum::<f64>() / values.len() as f64));
            if method.runs.len() > 1 {
                let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
                curve.band.push((step, lowest, values.iter().copied().fold(0.0, f64::max)));
            }
        }
        curves.push(curve);
    }
    let steps = curves.iter().flat_map(|curve| &curve.points).map(|point| point.0).fold(0.0, f64::max);
    let tops = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let top = tops.chain(curves.iter().flat_map(|curve| curve.band.iter().map(|band| band.2))).fold(0.0, f64::max);
    let is_baseline = |curve: &&Curve| curve.name == outcome.baseline;
    let single = curves
        .iter()
        .filter(|curve| !is_baseline(curve))
        .map(|curve| {
            let both = curves.iter().filter(is_baseline).chain([curve]).cloned().collect();
            Chart::new(&curve.name, "%", both).reaching(steps, top)
        })
        .collect();
    for curve in &mut curves {
        curve.band.clear();
    }
    Ok((Chart::new("Validation mIoU, means over seeds", "%", curves), single))
}
