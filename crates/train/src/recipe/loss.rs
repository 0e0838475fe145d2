//! The losses that a recipe can name, each with its settings.
//!
//! One list for all: what needs labels alone may stand in `[[task.terms]]` and `[[distillation]]`, what needs a teacher
//! in `[[distillation]]` only. Settings and their units: the functions of `dsd_similarity` and docs/losses.

use dsd_similarity as similarity;
use serde::{Deserialize, Serialize};

/// A loss by its name in the key `term`, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "term", rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// Cross-entropy with the labels, weighted by the task's class weights.
    CrossEntropy {},
    /// Cross-entropy on the hardest pixels, weighted by the task's class weights.
    OhemCrossEntropy(similarity::Ohem),
    /// Focal loss, weighted by the task's class weights.
    Focal(similarity::Focal),
    /// Soft Dice.
    Dice(similarity::Dice),
    /// Lovász-softmax.
    LovaszSoftmax(similarity::LovaszSoftmax),
    /// Structural similarity loss.
    Ssl(similarity::Ssl),
    /// Kullback–Leibler divergence of the class distributions at each pixel.
    PixelKd {
        /// T.
        temperature: f64,
        /// Pixels weighted by the task's class weights of what the teacher sees in them.
        #[serde(default, skip_serializing_if = "is_false")]
        class_weighted: bool,
    },
    /// Pixel-wise similarity: residual attention maps of pairs of layers.
    Psd {
        /// `paper_reading` or `cirkd_compat`.
        preset: Preset,
        /// The student's layers by name, shallow to deep.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
        /// Which pairs of layers; absent: the preset's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pairs: Option<similarity::LayerPairs>,
        /// Makes the weight independent of the crop size.
        #[serde(default)]
        resolution_normalised: bool,
    },
    /// Category-wise similarity: correlation matrix of the class maps.
    Csd {
        /// `paper_reading` or `cirkd_compat`.
        preset: Preset,
        /// τ; absent: the preset's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        temperature: Option<f64>,
    },
    /// Attention maps of single layers.
    AttentionTransfer {
        /// The student's layers by name.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
        /// p.
        #[serde(default = "two")]
        power: f64,
        /// Makes the weight independent of the crop size.
        #[serde(default)]
        resolution_normalised: bool,
    },
    /// Features themselves, after a learnt 1×1 adaptor.
    Fitnet {
        /// The student's layers by name.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
    },
    /// Distributions over the positions of each channel (CWD); of the logits where no layers are named.
    ChannelKd {
        /// T.
        #[serde(default = "four")]
        temperature: f64,
        /// The student's layers by name; they get an adaptor where channels differ.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        teacher: Vec<String>,
    },
    /// Similarities of places to each other (SKD).
    PairwiseKd {
        /// The student's layers by name.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
        /// What is pooled into one place: `"none"`, `{ pixels = [2, 2] }` or `{ share = 0.5 }`.
        #[serde(default = "half")]
        window: similarity::PoolWindow,
        /// The average of a window instead of its maximum.
        #[serde(default)]
        average: bool,
    },
    /// Similarities of places to the centre of their class (IFVD).
    Ifvd {
        /// The student's layers by name.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
    },
    /// Correlation between and within classes (DIST).
    DistKd(similarity::DistKd),
    /// Similarities to the places of all images of the batch (CIRKD).
    CrossImageKd {
        /// The student's layers by name.
        student: Vec<String>,
        /// The teacher's layers by name, as many.
        teacher: Vec<String>,
        /// τ.
        #[serde(default = "tenth")]
        temperature: f64,
        /// Side of the windows that are averaged first.
        #[serde(default = "one")]
        average_pool: usize,
    },
    /// Similarities to remembered embeddings of the teacher (CIRKD).
    MemoryContrast(MemoryContrast),
    /// A critic that tells student from teacher (SKD's holistic term).
    Adversarial(Adversarial),
    /// The structural similarity loss against the teacher's probabilities.
    SslDistillation(similarity::Ssl),
}

/// Settings of CIRKD's memory; the defaults are the published ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryContrast {
    /// The student's layers by name; each gets a projection.
    pub student: Vec<String>,
    /// The teacher's layers by name, as many.
    pub teacher: Vec<String>,
    /// τ of the similarities.
    #[serde(default = "tenth")]
    pub contrast_temperature: f64,
    /// T of the distillation.
    #[serde(default = "whole")]
    pub temperature: f64,
    /// Pixels remembered for each class.
    #[serde(default = "pixel_capacity")]
    pub pixel_capacity: usize,
    /// Class means of images remembered for each class.
    #[serde(default = "region_capacity")]
    pub region_capacity: usize,
    /// Pixels of each class of each image that are written in a step.
    #[serde(default = "pixels_per_class")]
    pub pixels_per_class: usize,
    /// Remembered pixels that a step compares with, all classes together.
    #[serde(default = "pixel_samples")]
    pub pixel_samples: usize,
    /// Remembered class means that a step compares with, all classes together.
    #[serde(default = "region_samples")]
    pub region_samples: usize,
}

/// Settings of the holistic term.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adversarial {
    /// `hinge` or `wasserstein`.
    #[serde(default = "hinge")]
    pub form: similarity::AdversarialForm,
    /// The critic network.
    #[serde(default)]
    pub critic: Critic,
    /// Learning rate of the critic's Adam.
    #[serde(default = "critic_rate")]
    pub critic_learning_rate: f64,
}

/// The size of the critic network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Critic {
    /// The published one; needs logits of 64 × 64.
    Published,
    /// Without its last stage; needs logits of 32 × 32.
    #[default]
    Small,
    /// Without its last two stages; needs logits of 16 × 16.
    Tiny,
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

impl Loss {
    /// The name in recipes, logs and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy {} => "cross_entropy",
            Self::OhemCrossEntropy(_) => "ohem_cross_entropy",
            Self::Focal(_) => "focal",
            Self::Dice(_) => "dice",
            Self::LovaszSoftmax(_) => "lovasz_softmax",
            Self::Ssl(_) => "ssl",
            Self::PixelKd { .. } => "pixel_kd",
            Self::Psd { .. } => "psd",
            Self::Csd { .. } => "csd",
            Self::AttentionTransfer { .. } => "attention_transfer",
            Self::Fitnet { .. } => "fitnet",
            Self::ChannelKd { .. } => "channel_kd",
            Self::PairwiseKd { .. } => "pairwise_kd",
            Self::Ifvd { .. } => "ifvd",
            Self::DistKd(_) => "dist_kd",
            Self::CrossImageKd { .. } => "cross_image_kd",
            Self::MemoryContrast(_) => "memory_contrast",
            Self::Adversarial(_) => "adversarial",
            Self::SslDistillation(_) => "ssl_distillation",
        }
    }

    /// Whether it compares the student with a teacher.
    #[must_use]
    pub fn needs_teacher(&self) -> bool {
        !matches!(
            self,
            Self::CrossEntropy {}
                | Self::OhemCrossEntropy(_)
                | Self::Focal(_)
                | Self::Dice(_)
                | Self::LovaszSoftmax(_)
                | Self::Ssl(_)
        )
    }

    /// The student's and the teacher's layers by name, where it compares features; without, it compares logits.
    #[must_use]
    pub fn layers(&self) -> Option<(&[String], &[String])> {
        match self {
            Self::Psd { student, teacher, .. }
            | Self::AttentionTransfer { student, teacher, .. }
            | Self::Fitnet { student, teacher }
            | Self::PairwiseKd { student, teacher, .. }
            | Self::Ifvd { student, teacher }
            | Self::CrossImageKd { student, teacher, .. }
            | Self::MemoryContrast(MemoryContrast { student, teacher, .. }) => Some((student, teacher)),
            Self::ChannelKd { student, teacher, .. } if !(student.is_empty() && teacher.is_empty()) => {
                Some((student, teacher))
            }
            _ => None,
        }
    }

    /// What is wrong with the settings, as key, expected and got; ranges of single numbers are checked by the losses
    /// themselves, in the rehearsal before a run.
    pub(super) fn fault(&self) -> Option<(&'static str, String, String)> {
        if let Some((student, teacher)) = self.layers() {
            let least = if matches!(self, Self::Psd { .. }) { 2 } else { 1 };
            if student.len() != teacher.len() || student.len() < least {
                let expected = format!("the same number of layers, at least {least}");
                return Some(("student and .teacher", expected, format!("{} and {}", student.len(), teacher.len())));
            }
        }
        if let Self::MemoryContrast(memory) = self {
            for (key, number) in [
                ("pixel_capacity", memory.pixel_capacity),
                ("region_capacity", memory.region_capacity),
                ("pixels_per_class", memory.pixels_per_class),
                ("pixel_samples", memory.pixel_samples),
                ("region_samples", memory.region_samples),
            ] {
                if number == 0 {
                    return Some((key, "at least 1".to_string(), "0".to_string()));
                }
            }
        }
        let positive = match self {
            Self::PixelKd { temperature, .. }
            | Self::Csd { temperature: Some(temperature), .. }
            | Self::ChannelKd { temperature, .. }
            | Self::CrossImageKd { temperature, .. } => ("temperature", *temperature),
            Self::Adversarial(settings) => ("critic_learning_rate", settings.critic_learning_rate),
            _ => return None,
        };
        let (key, number) = positive;
        let fits = number.is_finite() && number > 0.0;
        if fits { None } else { Some((key, "a number above 0".to_string(), number.to_string())) }
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn two() -> f64 {
    2.0
}

fn four() -> f64 {
    4.0
}

fn tenth() -> f64 {
    0.1
}

fn whole() -> f64 {
    1.0
}

fn one() -> usize {
    1
}

fn half() -> similarity::PoolWindow {
    similarity::PoolWindow::Share(0.5)
}

fn hinge() -> similarity::AdversarialForm {
    similarity::AdversarialForm::Hinge
}

fn critic_rate() -> f64 {
    4e-4
}

fn pixel_capacity() -> usize {
    20_000
}

fn region_capacity() -> usize {
    2_000
}

fn pixels_per_class() -> usize {
    16
}

fn pixel_samples() -> usize {
    4_096
}

fn region_samples() -> usize {
    1_024
}
