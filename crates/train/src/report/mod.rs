//! The page of a run: `report.html`, one self-contained file, a function of the run's folder alone.

pub(crate) mod chart;
mod pictures;
mod terms;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use dsd_models::ModelChoice;
use serde::Serialize;

use crate::checkpoint::write_whole;
use crate::environment::Environment;
use crate::journal::{self, Line};
use crate::recipe::{ROLES, Recipe, Role};
use crate::stage::Finished;
use crate::{Error, Result, times};

use chart::{Chart, Curve};

const TEMPLATE: &str = include_str!("page.html");

/// The style sheet inside every page.
const STYLE: &str = include_str!("page.css");

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
    /// Seconds of training by role, where they are known.
    seconds: Vec<Option<f64>>,
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
        let finished = recipe
            .roles()
            .iter()
            .map(|role| {
                let name = format!("{role}/done.json");
                serde_json::from_str(&text(&name)?).map_err(|error| Error::file(&folder.join(&name), error))
            })
            .collect::<Result<_>>()?;
        let seconds =
            recipe.roles().iter().map(|role| times::read(&folder.join(role)).map(|times| times.seconds)).collect();
        Ok(Self { recipe, recipe_text, environment, finished, seconds, lines: journal::read(folder)? })
    }

    /// The networks whose difference the report is about, by position: the reference and the one that is held against
    /// it. Without distillation these are the student and the teacher.
    fn compared(&self) -> [usize; 2] {
        if self.finished.len() == ROLES.len() { [1, 2] } else { [1, 0] }
    }

    fn settings(&self, role: usize) -> &Role {
        self.recipe.settings(ROLES[role]).1
    }

    /// The network with what it starts from, where not all start from the seed.
    fn model(&self, role: usize) -> String {
        let name = model_name(&self.settings(role).model);
        let origin = |role: &Role| role.weights.is_none().then(|| role.pretrained.clone()).flatten();
        match origin(self.settings(role)) {
            Some(source) => format!("{name}, backbone from {source}"),
            None if self.settings(role).weights.is_some() => name,
            None if origin(&self.recipe.teacher).or(origin(&self.recipe.student)).is_some() => {
                format!("{name}, from the seed")
            }
            None => name,
        }
    }

    fn rows(&self) -> Vec<RoleRow> {
        self.finished
            .iter()
            .enumerate()
            .map(|(role, done)| RoleRow {
                role: ROLES[role],
                colour: COLOURS[role],
                model: self.model(role),
                parameters: format!("{:.2} M", done.parameters as f64 / 1e6),
                steps: done.steps,
                minutes: self.seconds[role].map_or("–".to_string(), |seconds| format!("{:.1}", seconds / 60.0)),
                miou: percent(done.metrics.miou),
                mean_accuracy: percent(done.metrics.mean_accuracy),
                pixel_accuracy: percent(done.metrics.pixel_accuracy),
                best_step: done.best_step,
                last_miou: percent(done.last_miou),
            })
            .collect()
    }

    fn classes(&self, colours: &BTreeMap<String, [u8; 3]>) -> Vec<ClassRow> {
        let iou = |role: usize, class: &str| self.finished[role].metrics.iou.get(class);
        let names = self.finished[0].metrics.iou.0.iter().map(|(name, _)| name.clone());
        let [reference, other] = self.compared();
        names
            .map(|name| {
                let delta = iou(reference, &name).zip(iou(other, &name)).map(|(from, to)| 100.0 * (to - from));
                let [r, g, b] = colours.get(&name).copied().unwrap_or_default();
                ClassRow {
                    colour: format!("#{r:02x}{g:02x}{b:02x}"),
                    values: (0..self.finished.len()).map(|role| percent(iou(role, &name))).collect(),
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
        let miou: Option<Vec<f64>> = self.finished.iter().map(|done| Some(100.0 * done.metrics.miou?)).collect();
        let Some(miou) = miou else {
            return "No class of the validation split was counted.".to_string();
        };
        let [reference, other] = self.compared();
        let gain = signed(Some(miou[other] - miou[reference]));
        let chance = "One seed: a difference of a point or two can be chance.";
        match miou[..] {
            [teacher, baseline, distilled] => format!(
                "The student reached {baseline:.2} % mIoU alone and {distilled:.2} % distilled: {gain} points. \
                 The teacher has {teacher:.2} %. {chance}"
            ),
            _ => format!(
                "The teacher ({}) reached {:.2} % mIoU, the baseline ({}) {:.2} %: {gain} points for the teacher. {chance}",
                self.model(0),
                miou[0],
                self.model(1),
                miou[1]
            ),
        }
    }

    fn place(&self, role: &str) -> Option<usize> {
        self.recipe.roles().iter().position(|name| *name == role)
    }

    fn charts(&self) -> Vec<Chart> {
        let mut miou: Vec<Curve> =
            self.recipe.roles().iter().zip(COLOURS).map(|(role, colour)| Curve::new(role, colour)).collect();
        let mut loss = miou.clone();
        let mut terms: BTreeMap<String, Curve> = BTreeMap::new();
        for line in &self.lines {
            match line {
                Line::Evaluation { role, step, miou: value, .. } => {
                    if let Some(curve) = self.place(role).and_then(|index| miou.get_mut(index)) {
                        curve.points.push((*step as f64, 100.0 * value));
                    }
                }
                Line::Step { role, step, terms: values, weighted, .. } => {
                    let curve = self.place(role).and_then(|index| loss.get_mut(index));
                    if let (Some(curve), Some(value)) = (curve, values.get("cross_entropy")) {
                        curve.points.push((*step as f64, *value));
                    }
                    if role == "distilled" {
                        for (name, value) in weighted {
                            let curve = terms
                                .entry(name.clone())
                                .or_insert_with(|| Curve::new(name, chart::colour_of_term(name)));
                            curve.points.push((*step as f64, *value));
                        }
                    }
                }
                Line::Skipped { .. } => {}
            }
        }
        for curve in loss.iter_mut().chain(terms.values_mut()) {
            curve.smooth();
        }
        let mut charts = vec![
            Chart::new("Validation mIoU", "%", miou),
            Chart::new("Training cross-entropy (smoothed)", "nats", loss),
        ];
        if !terms.is_empty() {
            let terms = terms.into_values().collect();
            charts.push(Chart::new("Terms of the distilled student, weighted (smoothed)", "", terms));
        }
        charts
    }
}

/// Writes `report.html` of a finished run.
///
/// # Errors
/// A file of the run that is missing or damaged, by name.
pub fn write(folder: &Path) -> Result<()> {
    let run = Run::read(folder)?;
    let (pictures, colours) = pictures::pictures(folder, &run.recipe)?;
    let context = minijinja::context! {
        name => run.recipe.name.as_str(),
        roles => run.recipe.roles().to_vec(),
        compared => run.compared().map(|role| ROLES[role]).to_vec(),
        distilled => !run.recipe.distillation.is_empty(),
        description => run.recipe.description.as_str(),
        verdict => run.verdict(),
        rows => minijinja::Value::from(minijinja::value::Serde(run.rows())),
        classes => minijinja::Value::from(minijinja::value::Serde(run.classes(&colours))),
        charts => drawn(&run.charts()),
        terms => minijinja::Value::from(minijinja::value::Serde(terms::rows(&run.lines))),
        pictures => minijinja::Value::from(minijinja::value::Serde(pictures)),
        recipe => run.recipe_text.as_str(),
        environment => minijinja::Value::from(minijinja::value::Serde(&run.environment)),
        seed => run.recipe.seed,
        dataset => run.recipe.data.dataset.as_str(),
        split => run.recipe.data.val_split.as_str(),
    };
    write_page(&folder.join("report.html"), TEMPLATE, context)
}

/// Charts as a page takes them.
pub(crate) fn drawn(charts: &[Chart]) -> Vec<minijinja::Value> {
    charts.iter().map(|chart| minijinja::Value::from_safe_string(chart.svg())).collect()
}

/// Writes a page: a template, which may include the style sheet `page.css`, with its values.
///
/// # Errors
/// A value that the template misses; a file that cannot be written.
pub(crate) fn write_page(path: &Path, template: &str, context: minijinja::Value) -> Result<()> {
    let mut page = minijinja::Environment::new();
    page.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    let html = page
        .add_template("page.css", STYLE)
        .and_then(|()| page.add_template("page", template))
        .and_then(|()| page.get_template("page")?.render(context))
        .map_err(|error| Error::file(path, error))?;
    write_whole(path, html.as_bytes())
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
    let cells = |values: &[&str]| values.iter().map(|value| format!(" {value:>9}")).collect::<String>();
    line(format!("{:14}{}", "IoU %", cells(&[run.recipe.roles(), &["change"]].concat())));
    for row in run.classes(&BTreeMap::new()) {
        let values: Vec<&str> = row.values.iter().chain([&row.delta]).map(String::as_str).collect();
        line(format!("{:14}{}", row.name, cells(&values)));
    }
    line(run.verdict());
    Ok(text)
}

/// A variant's name, or the settings in short.
pub(crate) fn model_name(choice: &ModelChoice) -> String {
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

pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or("–".to_string(), |value| format!("{:.2}", 100.0 * value))
}

pub(crate) fn signed(value: Option<f64>) -> String {
    value.map_or("–".to_string(), |value| format!("{}{:.2}", if value < 0.0 { "−" } else { "+" }, value.abs()))
}
