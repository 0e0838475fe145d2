//! Recipes: a training run as a file.
//!
//! A recipe is TOML with a version and no unknown keys. It is parsed once, overrides (`key=value`, dotted) are laid over
//! it, and the resolved result is written into the run's folder, from where the run can be repeated. Here is what a
//! recipe says; `read` is how it is read and checked.

mod comparison;
mod loss;
mod read;
mod term;

use std::path::PathBuf;

use dsd_models::{ModelChoice, Normalisation};
use serde::{Deserialize, Deserializer, Serialize};

use crate::schedule::Schedule;

pub use comparison::{Comparison, Method};
pub(crate) use comparison::{TEACHER, place};
pub use loss::{Adversarial, Critic, Loss, MemoryContrast, Preset};
pub use read::differences;
pub use term::{Term, TermSchedule};

/// The version of the recipe format that this program writes and reads.
pub const VERSION: u32 = 1;

/// A comparison on CamVid with what several of them share.
macro_rules! on_camvid {
    ($name:literal) => {
        on_camvid!($name, "camvid")
    };
    ($name:literal, $shared:literal) => {
        (
            $name,
            concat!(
                include_str!(concat!("../../recipes/compare/", $name, ".toml")),
                "\n",
                include_str!(concat!("../../recipes/compare/", $shared, ".toml"))
            ),
        )
    };
}

/// The recipes inside the program: name and text.
pub const SHIPPED: [(&str, &str); 14] = [
    ("quick", include_str!("../../recipes/quick.toml")),
    ("smoke", include_str!("../../recipes/smoke.toml")),
    ("camvid", include_str!("../../recipes/camvid.toml")),
    ("camvid-small", include_str!("../../recipes/camvid-small.toml")),
    ("camvid-teacher", include_str!("../../recipes/camvid-teacher.toml")),
    ("compare-quick", include_str!("../../recipes/compare/compare-quick.toml")),
    on_camvid!("compare-camvid"),
    on_camvid!("compare-camvid-enet", "camvid-half"),
    on_camvid!("compare-camvid-mobilenet", "camvid-half"),
    on_camvid!("ablation-terms"),
    on_camvid!("ablation-pairs"),
    on_camvid!("ablation-layers"),
    on_camvid!("ablation-temperature"),
    on_camvid!("ablation-presets"),
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
    /// How the inputs of a network are scaled that states no normalisation and has no pretrained weights with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
    /// The loss against the labels, equal for all networks of the run.
    pub task: Task,
    /// The large network.
    pub teacher: Role,
    /// The compact network; trained alone and, where there are distillation terms, distilled with the same settings.
    pub student: Role,
    /// The terms that the distilled student has besides the task's, most of which pull it to the teacher; none: there is
    /// no distilled student.
    pub distillation: Vec<Term>,
    /// How the objective is watched and weighted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub objective: ObjectiveOptions,
    /// Methods and seeds of a comparison; absent: the recipe is of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Evaluation during training.
    pub evaluation: Evaluation,
    /// Checkpoints, loader and log.
    #[serde(default)]
    pub run: RunOptions,
}

/// The networks that a run can train, in this order.
pub const ROLES: [&str; 3] = ["teacher", "baseline", "distilled"];

impl Recipe {
    /// The networks that this run trains, in this order: the first two or all of [`ROLES`].
    #[must_use]
    pub fn roles(&self) -> &'static [&'static str] {
        if self.distillation.is_empty() { &ROLES[..2] } else { &ROLES }
    }

    /// The folders of all stages, below the run's.
    pub(crate) fn places(&self) -> Vec<String> {
        match &self.comparison {
            Some(comparison) => comparison.places(),
            None => self.roles().iter().map(ToString::to_string).collect(),
        }
    }

    /// The settings of one of [`ROLES`] with their key in the recipe: `teacher` or `student`.
    #[must_use]
    pub fn settings(&self, role: &str) -> (&'static str, &Role) {
        if role == ROLES[0] { ("teacher", &self.teacher) } else { ("student", &self.student) }
    }
}

/// Where images and labels come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `streets` (built in), `folder`, or a published dataset (`dsd data` lists them), with a policy after a colon where it
    /// has several: `camvid:exact`.
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
    /// Height and width that images and labels are brought to, in pixels; of `streets`, that scenes are drawn in.
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
    /// Weights of the classes in the cross-entropy and in the terms that say so.
    #[serde(default)]
    pub class_weights: ClassWeights,
    /// The terms on the main head's logits; absent: cross-entropy with weight 1.
    #[serde(default = "cross_entropy_alone", skip_serializing_if = "is_cross_entropy_alone")]
    pub terms: Vec<Term>,
}

fn cross_entropy_alone() -> Vec<Term> {
    vec![Term::new(1.0, Loss::CrossEntropy {})]
}

fn is_cross_entropy_alone(terms: &[Term]) -> bool {
    terms == cross_entropy_alone()
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
    /// Weights that the backbone starts from: a file, a folder or `hub:…`; absent or empty: all starts from the seed.
    #[serde(default, deserialize_with = "unless_empty", skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// How the network's inputs are scaled; absent: as its pretrained weights expect, else as the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
    /// Factor on the learning rate of the parameters below `backbone.`, above 0 and at most 1.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub backbone_learning_rate_factor: f64,
    /// Computes the backbone's blocks again in the backward pass instead of keeping what lies inside them: less memory,
    /// more time, the same result up to the rounding of sums.
    #[serde(default, skip_serializing_if = "is_off")]
    pub recompute: bool,
    /// Training steps.
    pub steps: u64,
    /// Images at once.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step. Each is normalised by its own statistics.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub accumulate: u64,
    /// What stays of the moving average of weights at each step, in (0, 1); absent: there is none. Where there is one, it
    /// is what is evaluated and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// The learning rate of each step.
    pub schedule: Schedule,
}

fn unless_empty<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|source| !source.trim().is_empty()))
}

fn is_default(options: &ObjectiveOptions) -> bool {
    *options == ObjectiveOptions::default()
}

fn is_off(switch: &bool) -> bool {
    !*switch
}

fn once() -> u64 {
    1
}

fn is_once(batches: &u64) -> bool {
    *batches == 1
}

fn whole() -> f64 {
    1.0
}

fn is_whole(factor: &f64) -> bool {
    *factor == 1.0
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

/// How the objective is watched and weighted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveOptions {
    /// Steps between measurements of the terms' shares of the gradient; 0: never.
    pub share_every: u64,
    /// Where the shares are measured; absent: at the logits where all terms act on logits, else at the parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_at: Option<ShareAt>,
    /// Where weights come from.
    pub balance: Balance,
    /// With `balance = "share"`: the first steps, all of which are measured and count the same.
    pub balance_steps: u64,
}

impl Default for ObjectiveOptions {
    fn default() -> Self {
        Self { share_every: 100, share_at: None, balance: Balance::Weight, balance_steps: 20 }
    }
}

/// Where gradients of terms are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareAt {
    /// The student's logits, the auxiliary head's among them. Cheap; a term on features alone holds nothing there.
    Logits,
    /// The student's parameters: a backward pass for each term.
    Parameters,
}

/// Where the weights of terms come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The recipe's weights.
    Weight,
    /// For terms with a `share`: so that they hold that part of the gradient's norm.
    Share,
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
    /// What a step does in which a loss or a gradient is not finite.
    pub on_not_finite: OnNotFinite,
    /// Convolutions are summed directly, never by Winograd's algorithm: smaller rounding errors, more time.
    pub exact: bool,
}

/// What a step does in which a loss or a gradient is not finite. Either way it is named with the first layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNotFinite {
    /// It ends the run.
    #[default]
    Stop,
    /// It changes nothing, is counted and logged; many in a row end the run.
    Skip,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            checkpoint_every: 200,
            log_every: 10,
            workers: 1,
            prefetch: 4,
            pictures: 6,
            on_not_finite: OnNotFinite::Stop,
            exact: false,
        }
    }
}
