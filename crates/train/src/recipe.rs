//! Recipes: a training run as a file.
//!
//! A recipe is TOML with a version and no unknown keys. It is parsed once, overrides (`key=value`, dotted) are laid over
//! it, and the resolved result is written into the run's folder, from where the run can be repeated.

use std::path::{Path, PathBuf};

use dsd_models::ModelChoice;
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;
use crate::{Error, Result};

/// The version of the recipe format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The recipes inside the program: name and text.
pub const SHIPPED: [(&str, &str); 4] = [
    ("quick", include_str!("../recipes/quick.toml")),
    ("smoke", include_str!("../recipes/smoke.toml")),
    ("camvid", include_str!("../recipes/camvid.toml")),
    ("camvid-small", include_str!("../recipes/camvid-small.toml")),
];

/// A whole run: data, teacher, student, distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Format version, 1.
    pub version: u32,
    /// Name of the run and of its folder.
    pub name: String,
    /// One sentence for the report.
    pub description: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Where images and labels come from.
    pub data: Data,
    /// How training images are varied.
    pub augmentation: Augmentation,
    /// How inputs are scaled; stored with every saved model.
    pub normalisation: dsd_models::Normalisation,
    /// The loss against the labels, equal for all networks of the run.
    pub task: Task,
    /// The large network.
    pub teacher: Role,
    /// The compact network; trained twice, alone and distilled, with the same settings.
    pub student: Role,
    /// The terms that pull the distilled student to the teacher.
    pub distillation: Vec<Term>,
    /// Evaluation during training.
    pub evaluation: Evaluation,
    /// Checkpoints, loader and log.
    #[serde(default)]
    pub run: RunOptions,
}

/// Where images and labels come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `streets` (built in), `camvid` or `folder`.
    pub dataset: String,
    /// Folder of the dataset; not for `streets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Split to train on.
    #[serde(default = "train_split")]
    pub train_split: String,
    /// Split to evaluate on.
    #[serde(default = "val_split")]
    pub val_split: String,
    /// `streets` only: number of training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_count: Option<usize>,
    /// `streets` only: number of validation images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_count: Option<usize>,
    /// `streets` only: height and width of an image, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[usize; 2]>,
}

fn train_split() -> String {
    "train".to_string()
}

fn val_split() -> String {
    "val".to_string()
}

/// How training images are varied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Smallest and largest scale factor.
    pub scale: [f64; 2],
    /// Step between allowed scales; absent: any value between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_step: Option<f64>,
    /// Height and width of the crop, in pixels.
    pub crop: [usize; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Largest relative change of brightness, 0 for none.
    #[serde(default)]
    pub brightness: f32,
    /// Largest relative change of contrast, 0 for none.
    #[serde(default)]
    pub contrast: f32,
    /// Largest relative change of saturation, 0 for none.
    #[serde(default)]
    pub saturation: f32,
}

/// The loss against the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Weight of the auxiliary head's cross-entropy (0.4 in the PSPNet paper and the distillation papers).
    pub aux_weight: f64,
    /// Weights of the classes in the cross-entropy.
    #[serde(default)]
    pub class_weights: ClassWeights,
}

/// Weights of the classes in the cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// Every pixel counts the same.
    #[default]
    None,
    /// 1 / ln(1.02 + share of the class), the ENet paper's weighting (section 5.2), from the training labels.
    Enet,
    /// Median class frequency over the class's frequency among images that show it (SegNet's CamVid protocol).
    MedianFrequency,
}

/// One network and how it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// A variant's name (see `dsd models`) or a table of settings.
    pub model: ModelChoice,
    /// Folder of a saved model to use instead of training one (teacher only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Training steps.
    pub steps: u64,
    /// Images per step.
    pub batch_size: usize,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// The learning rate of each step.
    pub schedule: Schedule,
}

/// The optimiser of a network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimiser {
    /// Stochastic gradient descent with momentum, PyTorch's convention.
    Sgd {
        /// Base learning rate.
        learning_rate: f64,
        /// Momentum.
        momentum: f64,
        /// Nesterov's form.
        #[serde(default)]
        nesterov: bool,
        /// Coupled weight decay.
        weight_decay: f64,
        /// Decay norms and biases too, as the distillation papers' code does.
        #[serde(default = "yes")]
        decay_all: bool,
        /// Largest global gradient norm; absent: no clipping.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clip_norm: Option<f64>,
    },
    /// AdamW with decoupled weight decay, PyTorch's convention.
    Adamw {
        /// Base learning rate.
        learning_rate: f64,
        /// Decay of the first and second moment.
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// Decoupled weight decay, on weights of two and more dimensions.
        weight_decay: f64,
        /// Decay norms and biases too.
        #[serde(default)]
        decay_all: bool,
        /// Largest global gradient norm; absent: no clipping.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clip_norm: Option<f64>,
    },
}

fn yes() -> bool {
    true
}

fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn adam_eps() -> f64 {
    1e-8
}

/// One term that pulls the distilled student to the teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "term", rename_all = "snake_case", deny_unknown_fields)]
pub enum Term {
    /// Kullback–Leibler divergence of the class distributions at each pixel.
    PixelKd {
        /// λ.
        weight: f64,
        /// T.
        temperature: f64,
    },
    /// Pixel-wise similarity: residual attention maps of pairs of layers.
    Psd {
        /// λ1.
        weight: f64,
        /// `paper_reading` or `cirkd_compat`.
        preset: Preset,
        /// The student's layers by name, shallow to deep.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
        /// Makes the weight independent of the crop size.
        #[serde(default)]
        resolution_normalised: bool,
    },
    /// Category-wise similarity: correlation matrix of the class maps.
    Csd {
        /// λ2.
        weight: f64,
        /// `paper_reading` or `cirkd_compat`.
        preset: Preset,
        /// τ; absent: the preset's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        temperature: Option<f64>,
    },
}

/// A named reading of the DSD paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The best supported reading of the paper.
    PaperReading,
    /// What CIRKD's public code computes.
    CirkdCompat,
}

impl Term {
    /// The name in logs and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PixelKd { .. } => "pixel_kd",
            Self::Psd { .. } => "psd",
            Self::Csd { .. } => "csd",
        }
    }

    /// λ.
    #[must_use]
    pub fn weight(&self) -> f64 {
        match self {
            Self::PixelKd { weight, .. } | Self::Psd { weight, .. } | Self::Csd { weight, .. } => *weight,
        }
    }
}

/// Evaluation during training, on whole images at label size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Steps between evaluations; the last step is always evaluated.
    pub every: u64,
    /// Images at once.
    pub batch_size: usize,
}

/// Checkpoints, loader and log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunOptions {
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Loader threads; 0 loads in the training thread.
    pub workers: usize,
    /// Batches loaded ahead.
    pub prefetch: usize,
    /// Validation images in the report.
    pub pictures: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { checkpoint_every: 200, log_every: 10, workers: 1, prefetch: 4, pictures: 6 }
    }
}

impl Recipe {
    /// Reads a shipped recipe by name or a file by path, lays `key=value` overrides over it and checks it.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the name, the key and what is allowed.
    pub fn read(name_or_path: &str, overrides: &[String]) -> Result<Self> {
        let text = match SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            Some((_, text)) => (*text).to_string(),
            None => {
                let path = Path::new(name_or_path);
                if !path.is_file() {
                    let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
                    return Err(wrong(
                        name_or_path,
                        format!("no such recipe or file; the program has {}", names.join(", ")),
                    ));
                }
                std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?
            }
        };
        Self::parse(name_or_path, &text, overrides)
    }

    /// Parses the text of a recipe; `label` names it in errors.
    ///
    /// # Errors
    /// [`Error::Recipe`].
    pub fn parse(label: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| wrong(label, one_line(text, &error)))?;
        for entry in overrides {
            lay_over(label, &mut table, entry)?;
        }
        // Through text again, so that an error can show its line and the key's whole path.
        let resolved = toml::to_string(&table).map_err(|error| wrong(label, error))?;
        let recipe: Self = toml::from_str(&resolved).map_err(|error| wrong(label, one_line(&resolved, &error)))?;
        recipe.check(label)?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML.
    ///
    /// # Errors
    /// [`Error::Recipe`] where a value has no TOML form.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| wrong(&self.name, error))
    }

    fn check(&self, label: &str) -> Result<()> {
        let refuse =
            |key: &str, expected: &str, got: String| Err(wrong(label, format!("{key} is {got}, expected {expected}")));
        if self.version != VERSION {
            return refuse("version", &VERSION.to_string(), self.version.to_string());
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            return refuse("name", "a plain folder name", format!("{:?}", self.name));
        }
        for (name, role) in [("teacher", &self.teacher), ("student", &self.student)] {
            if role.batch_size == 0 {
                return refuse(&format!("{name}.batch_size"), "at least 1", "0".to_string());
            }
            if role.steps == 0 && role.weights.is_none() {
                return refuse(&format!("{name}.steps"), "at least 1", "0".to_string());
            }
            let (Optimiser::Sgd { learning_rate, weight_decay, clip_norm, .. }
            | Optimiser::Adamw { learning_rate, weight_decay, clip_norm, .. }) = role.optimiser;
            if !(learning_rate.is_finite() && learning_rate > 0.0) {
                return refuse(
                    &format!("{name}.optimiser.learning_rate"),
                    "a number above 0",
                    learning_rate.to_string(),
                );
            }
            if !(weight_decay.is_finite() && weight_decay >= 0.0) {
                return refuse(
                    &format!("{name}.optimiser.weight_decay"),
                    "a number not below 0",
                    weight_decay.to_string(),
                );
            }
            if clip_norm.is_some_and(|norm| !(norm.is_finite() && norm > 0.0)) {
                return refuse(&format!("{name}.optimiser.clip_norm"), "a number above 0", format!("{clip_norm:?}"));
            }
            if !(role.schedule.power.is_finite() && role.schedule.power >= 0.0) {
                return refuse(
                    &format!("{name}.schedule.power"),
                    "a number not below 0",
                    role.schedule.power.to_string(),
                );
            }
        }
        if self.student.weights.is_some() {
            return refuse("student.weights", "nothing: only the teacher can be loaded", "set".to_string());
        }
        for (key, number) in [
            ("evaluation.every", self.evaluation.every),
            ("evaluation.batch_size", self.evaluation.batch_size as u64),
            ("run.checkpoint_every", self.run.checkpoint_every),
            ("run.log_every", self.run.log_every),
        ] {
            if number == 0 {
                return refuse(key, "at least 1", "0".to_string());
            }
        }
        if !(self.task.aux_weight.is_finite() && self.task.aux_weight >= 0.0) {
            return refuse("task.aux_weight", "a number not below 0", self.task.aux_weight.to_string());
        }
        for (index, term) in self.distillation.iter().enumerate() {
            let weight = term.weight();
            if !(weight.is_finite() && weight >= 0.0) {
                return refuse(&format!("distillation[{index}].weight"), "a number not below 0", weight.to_string());
            }
            match term {
                Term::Psd { student, teacher, .. } if student.len() != teacher.len() || student.len() < 2 => {
                    return refuse(
                        &format!("distillation[{index}].student and .teacher"),
                        "the same number of layers, at least 2",
                        format!("{} and {}", student.len(), teacher.len()),
                    );
                }
                Term::PixelKd { temperature, .. } | Term::Csd { temperature: Some(temperature), .. }
                    if !(temperature.is_finite() && *temperature > 0.0) =>
                {
                    return refuse(
                        &format!("distillation[{index}].temperature"),
                        "a number above 0",
                        temperature.to_string(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The keys, dotted, at which two recipes differ, each with both values.
///
/// # Errors
/// [`Error::Recipe`] where a recipe has no TOML form.
pub fn differences(left: &Recipe, right: &Recipe) -> Result<Vec<String>> {
    let table = |recipe: &Recipe| toml::Table::try_from(recipe).map_err(|error| wrong(&recipe.name, error));
    let mut found = Vec::new();
    compare("", &toml::Value::Table(table(left)?), &toml::Value::Table(table(right)?), &mut found);
    Ok(found)
}

fn compare(path: &str, left: &toml::Value, right: &toml::Value, found: &mut Vec<String>) {
    if let (toml::Value::Table(a), toml::Value::Table(b)) = (left, right) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (a.get(key), b.get(key)) {
                (Some(x), Some(y)) => compare(&inner, x, y, found),
                (x, y) => {
                    let show = |value: Option<&toml::Value>| value.map_or("absent".to_string(), ToString::to_string);
                    found.push(format!("{inner} ({} → {})", show(x), show(y)));
                }
            }
        }
    } else if left != right {
        found.push(format!("{path} ({left} → {right})"));
    }
}

/// Lays one `key=value` over a recipe. The value is read as TOML; what is not TOML is taken as a string.
fn lay_over(label: &str, table: &mut toml::Table, entry: &str) -> Result<()> {
    let (key, value) = entry
        .split_once('=')
        .ok_or_else(|| wrong(label, format!("--set {entry}: expected key=value, for example student.steps=400")))?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {value}")) {
        Ok(mut parsed) => parsed.remove("value").unwrap_or_else(|| toml::Value::String(value.to_string())),
        Err(_) => toml::Value::String(value.to_string()),
    };
    let mut place: Option<&mut toml::Value> = None;
    let parts: Vec<&str> = key.trim().split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let parent = parts[..depth].join(".");
        let unknown = |what: &str| wrong(label, format!("--set {key}: {parent} {what}"));
        let next = match place {
            None => table.entry(part.to_string()).or_insert_with(|| toml::Table::new().into()),
            Some(toml::Value::Table(inner)) => {
                inner.entry(part.to_string()).or_insert_with(|| toml::Table::new().into())
            }
            Some(toml::Value::Array(items)) => {
                let count = items.len();
                part.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                    unknown(&format!("is a list of {count}; expected a position below that, got {part}"))
                })?
            }
            Some(_) => return Err(unknown("is a single value and has no keys")),
        };
        place = Some(next);
    }
    if let Some(place) = place {
        *place = value;
    }
    Ok(())
}

/// A TOML error in one line, with the line it points at.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count());
            let shown = text.lines().nth(line).unwrap_or_default().trim();
            if shown.is_empty() { message } else { format!("{message} (at `{shown}`)") }
        }
        None => message,
    }
}

fn wrong(recipe: &str, message: impl ToString) -> Error {
    Error::Recipe { recipe: recipe.to_string(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::read("smoke", &overrides).unwrap_err().to_string()
    }

    #[test]
    fn every_shipped_recipe_is_read_and_its_resolved_form_is_the_same_recipe() {
        for (name, _) in SHIPPED {
            let recipe = Recipe::read(name, &[]).unwrap();
            assert_eq!(recipe.name, name);
            assert_eq!(Recipe::parse(name, &recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
        }
    }

    #[test]
    fn overrides_reach_nested_keys_lists_and_strings() {
        let set = ["student.steps=7", "distillation.0.weight=2.5", "data.dataset=camvid", "augmentation.crop=[32, 48]"];
        let recipe = Recipe::read("smoke", &set.map(String::from)).unwrap();
        assert_eq!((recipe.student.steps, recipe.distillation[0].weight()), (7, 2.5));
        assert_eq!((recipe.data.dataset.as_str(), recipe.augmentation.crop), ("camvid", [32, 48]));
    }

    #[test]
    fn wrong_recipes_are_refused_in_one_line_that_names_the_key() {
        for (overrides, culprit) in [
            (vec!["student.stepz=7"], "stepz"),
            (vec!["studnt.steps=7"], "studnt"),
            (vec!["version=9"], "version is 9, expected 1"),
            (vec!["student.batch_size=0"], "student.batch_size is 0"),
            (vec!["student.optimiser.learning_rate=-1"], "student.optimiser.learning_rate is -1"),
            (vec!["student.steps=many"], "steps"),
            (vec!["steps"], "expected key=value"),
            (vec!["name=a/b"], "plain folder name"),
        ] {
            let message = failure(&overrides);
            assert!(message.contains(culprit), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        assert!(Recipe::read("nowhere", &[]).unwrap_err().to_string().contains("quick, smoke, camvid"));
    }

    #[test]
    fn differences_name_the_keys_with_both_values() {
        let one = Recipe::read("smoke", &[]).unwrap();
        let other = Recipe::read("smoke", &["student.steps=3".to_string()]).unwrap();
        assert!(differences(&one, &one).unwrap().is_empty());
        let found = differences(&one, &other).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("student.steps (") && found[0].ends_with("→ 3)"), "{found:?}");
    }
}
