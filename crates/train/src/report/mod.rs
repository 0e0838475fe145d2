//! The page of a run: `report.html`, one self-contained file, a function of the run's folder alone.

mod chart;
mod pictures;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use dsd_models::ModelChoice;
use serde::Serialize;

use crate::checkpoint::write_whole;
use crate::environment::Environment;
use crate::journal::{self, Line};
use crate::recipe::Recipe;
use crate::stage::{Finished, ROLES};
use crate::{Error, Result};

use chart::{Chart, Curve};

const TEMPLATE: &str = include_str!("page.html");

/// One colour per role, the same in every chart; told apart by lightness too.
const COLOURS: [&str; 3] = ["#7a5195", "#8a8f98", "#d1495b"];

/// A row of the first table.
#[derive(Serialize)]
struct RoleRow {
    role: &'static str,
    colour: &'static str,
    model: String,
    parameters: String,
    steps: u64,
    minutes: String,
    miou: String,
    mean_accuracy: String,
    pixel_accuracy: String,
    best_step: u64,
    last_miou: String,
}

/// A row of the table by class; numbers in percent.
#[derive(Serialize)]
struct ClassRow {
    name: String,
    colour: String,
    values: Vec<String>,
    delta: String,
    /// Length of the bar, 0–50, and its side.
    bar: f64,
    gain: bool,
}

/// What a run's folder says.
struct Run {
    recipe: Recipe,
    recipe_text: String,
    environment: Environment,
    finished: Vec<Finished>,
    lines: Vec<Line>,
}

impl Run {
    fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| -> Result<String> {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))
        };
        let recipe_text = text("recipe.toml")?;
        let recipe = Recipe::parse(&folder.join("recipe.toml").display().to_string(), &recipe_text, &[])?;
        let environment = serde_json::from_str(&text("environment.json")?)
            .map_err(|error| Error::file(&folder.join("environment.json"), error))?;
        let finished = ROLES
            .iter()
            .map(|role| {
                let name = format!("{role}/done.json");
                serde_json::from_str(&text(&name)?).map_err(|error| Error::file(&folder.join(&name), error))
            })
            .collect::<Result<_>>()?;
        Ok(Self { recipe, recipe_text, environment, finished, lines: journal::read(folder)? })
    }

    fn miou(&self, role: usize) -> Option<f64> {
        self.finished[role].metrics.miou
    }

    fn rows(&self) -> Vec<RoleRow> {
        (0..ROLES.len())
            .map(|role| {
                let settings = if role == 0 { &self.recipe.teacher } else { &self.recipe.student };
                let done = &self.finished[role];
                RoleRow {
                    role: ROLES[role],
                    colour: COLOURS[role],
                    model: model_name(&settings.model),
                    parameters: format!("{:.2} M", done.parameters as f64 / 1e6),
                    steps: done.steps,
                    minutes: format!("{:.1}", done.seconds / 60.0),
                    miou: percent(done.metrics.miou),
                    mean_accuracy: percent(done.metrics.mean_accuracy),
                    pixel_accuracy: percent(done.metrics.pixel_accuracy),
                    best_step: done.best_step,
                    last_miou: percent(done.last_miou),
                }
            })
            .collect()
    }

    fn classes(&self, colours: &BTreeMap<String, [u8; 3]>) -> Vec<ClassRow> {
        let iou = |role: usize, class: &str| self.finished[role].metrics.iou.get(class);
        let names = self.finished[0].metrics.iou.0.iter().map(|(name, _)| name.clone());
        names
            .map(|name| {
                let delta =
                    iou(1, &name).zip(iou(2, &name)).map(|(baseline, distilled)| 100.0 * (distilled - baseline));
                let [r, g, b] = colours.get(&name).copied().unwrap_or_default();
                ClassRow {
                    colour: format!("#{r:02x}{g:02x}{b:02x}"),
                    values: (0..ROLES.len()).map(|role| percent(iou(role, &name))).collect(),
                    delta: signed(delta),
                    bar: delta.map_or(0.0, |delta| (delta.abs() * 2.5).min(50.0)),
                    gain: delta.is_some_and(|delta| delta >= 0.0),
                    name,
                }
            })
            .collect()
    }

    /// One sentence on what came out, with what it does not say.
    fn verdict(&self) -> String {
        let (Some(teacher), Some(baseline), Some(distilled)) = (self.miou(0), self.miou(1), self.miou(2)) else {
            return "No class of the validation split was counted.".to_string();
        };
        let gain = 100.0 * (distilled - baseline);
        format!(
            "The student reached {:.2} % mIoU alone and {:.2} % distilled: {}{:.2} points. The teacher has {:.2} %. \
             One seed: a difference of a point or two can be chance.",
            100.0 * baseline,
            100.0 * distilled,
            if gain < 0.0 { "−" } else { "+" },
            gain.abs(),
            100.0 * teacher
        )
    }

    fn charts(&self) -> Vec<Chart> {
        let mut miou: Vec<Curve> = ROLES.iter().zip(COLOURS).map(|(role, colour)| Curve::new(role, colour)).collect();
        let mut loss = miou.clone();
        let mut terms: BTreeMap<String, Curve> = BTreeMap::new();
        for line in &self.lines {
            match line {
                Line::Evaluation { role, step, miou: value, .. } => {
                    if let Some(index) = ROLES.iter().position(|name| name == role) {
                        miou[index].points.push((*step as f64, 100.0 * value));
                    }
                }
                Line::Step { role, step, terms: values, .. } => {
                    if let (Some(index), Some(value)) =
                        (ROLES.iter().position(|name| name == role), values.get("cross_entropy"))
                    {
                        loss[index].points.push((*step as f64, *value));
                    }
                    if role == "distilled" {
                        for (name, value) in values {
                            let weighted = value * self.weight(name);
                            let curve = terms
                                .entry(name.clone())
                                .or_insert_with(|| Curve::new(name, chart::colour_of_term(name)));
                            curve.points.push((*step as f64, weighted));
                        }
                    }
                }
            }
        }
        for curve in loss.iter_mut().chain(terms.values_mut()) {
            curve.smooth();
        }
        vec![
            Chart::new("Validation mIoU", "%", miou),
            Chart::new("Training cross-entropy (smoothed)", "nats", loss),
            Chart::new("Terms of the distilled student, weighted (smoothed)", "", terms.into_values().collect()),
        ]
    }

    /// The factor of a term by its logged name.
    fn weight(&self, name: &str) -> f64 {
        match name {
            "cross_entropy" => 1.0,
            "aux_cross_entropy" => self.recipe.task.aux_weight,
            other => {
                let same = |term: &&crate::recipe::Term| other.starts_with(term.name());
                let number: usize = other.rsplit_once('_').and_then(|(_, digits)| digits.parse().ok()).unwrap_or(1);
                self.recipe.distillation.iter().filter(same).nth(number - 1).map_or(1.0, |term| term.weight())
            }
        }
    }
}

/// Writes `report.html` of a finished run.
///
/// # Errors
/// A file of the run that is missing or damaged, by name.
pub fn write(folder: &Path) -> Result<()> {
    let run = Run::read(folder)?;
    let (pictures, colours) = pictures::pictures(folder, &run.recipe)?;
    let path = folder.join("report.html");
    let mut page = minijinja::Environment::new();
    page.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    page.add_template("page", TEMPLATE).map_err(|error| Error::file(&path, error))?;
    let charts: Vec<minijinja::Value> =
        run.charts().iter().map(|chart| minijinja::Value::from_safe_string(chart.svg())).collect();
    let html = page
        .get_template("page")
        .and_then(|template| {
            template.render(minijinja::context! {
                name => run.recipe.name.as_str(),
                description => run.recipe.description.as_str(),
                verdict => run.verdict(),
                rows => minijinja::Value::from(minijinja::value::Serde(run.rows())),
                classes => minijinja::Value::from(minijinja::value::Serde(run.classes(&colours))),
                charts => charts,
                pictures => minijinja::Value::from(minijinja::value::Serde(pictures)),
                recipe => run.recipe_text.as_str(),
                environment => minijinja::Value::from(minijinja::value::Serde(&run.environment)),
                seed => run.recipe.seed,
                dataset => run.recipe.data.dataset.as_str(),
                split => run.recipe.data.val_split.as_str(),
            })
        })
        .map_err(|error| Error::file(&path, error))?;
    write_whole(&path, html.as_bytes())
}

/// The two tables of a finished run as text.
///
/// # Errors
/// A file of the run that is missing or damaged, by name.
pub fn table(folder: &Path) -> Result<String> {
    let run = Run::read(folder)?;
    let mut text = String::new();
    let mut line = |row: String| {
        let _ = writeln!(text, "{}", row.trim_end());
    };
    line(format!(
        "{:10} {:>8} {:>9} {:>9} {:>11} {:>6} {:>8}  model",
        "", "mIoU %", "mAcc %", "pixAcc %", "parameters", "steps", "minutes"
    ));
    for row in run.rows() {
        line(format!(
            "{:10} {:>8} {:>9} {:>9} {:>11} {:>6} {:>8}  {}",
            row.role,
            row.miou,
            row.mean_accuracy,
            row.pixel_accuracy,
            row.parameters,
            row.steps,
            row.minutes,
            row.model
        ));
    }
    line(String::new());
    line(format!("{:14} {:>9} {:>9} {:>9} {:>9}", "IoU %", ROLES[0], ROLES[1], ROLES[2], "change"));
    for row in run.classes(&BTreeMap::new()) {
        let values = &row.values;
        line(format!("{:14} {:>9} {:>9} {:>9} {:>9}", row.name, values[0], values[1], values[2], row.delta));
    }
    line(run.verdict());
    Ok(text)
}

/// A variant's name, or the settings in short.
fn model_name(choice: &ModelChoice) -> String {
    match choice {
        ModelChoice::Named(name) => name.clone(),
        ModelChoice::Table(config) => match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(settings)) => {
                let show = |key: &str| settings.get(key).map(|value| value.to_string().replace('"', ""));
                let mut name =
                    [show("architecture"), show("backbone")].into_iter().flatten().collect::<Vec<_>>().join(" ");
                for (key, label) in [("width", "width"), ("output_stride", "stride"), ("head_channels", "head")] {
                    if let Some(value) = show(key) {
                        let _ = write!(name, ", {label} {value}");
                    }
                }
                name
            }
            _ => String::new(),
        },
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("–".to_string(), |value| format!("{:.2}", 100.0 * value))
}

fn signed(value: Option<f64>) -> String {
    value.map_or("–".to_string(), |value| format!("{}{:.2}", if value < 0.0 { "−" } else { "+" }, value.abs()))
}
