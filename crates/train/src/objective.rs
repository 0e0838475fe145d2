//! The objective: what a step minimises, term by term.
//!
//! Task cross-entropy on the logits, the same on the auxiliary head, and the recipe's distillation terms. Losses know no
//! model; this is where the names of features are looked up and where sizes that differ are brought together.

use candle_core::Tensor;
use dsd_models::Output;
use dsd_ops::{CrossEntropyOptions, cross_entropy, resize_bilinear};
use dsd_similarity as similarity;

use crate::recipe::{Preset, Task, Term};
use crate::{Error, Result, tensors};

/// One term of a step's loss.
#[derive(Clone, Debug)]
pub struct TermLoss {
    /// The term's name, unique in the objective.
    pub name: String,
    /// Its factor in the total.
    pub weight: f64,
    /// Its value before the factor: `[]` float with a graph to the student.
    pub loss: Tensor,
}

/// The whole objective of one network.
#[derive(Clone, Debug)]
pub struct Objective {
    task: Task,
    class_weights: Option<Vec<f64>>,
    ignore_label: u8,
    terms: Vec<(String, Term)>,
}

impl Objective {
    /// Cross-entropy with the given class weights, and `terms` against a teacher (none for a network trained alone).
    #[must_use]
    pub fn new(task: Task, class_weights: Option<Vec<f64>>, ignore_label: u8, terms: &[Term]) -> Self {
        let mut named: Vec<(String, Term)> = Vec::new();
        for term in terms.iter().filter(|term| term.weight() > 0.0) {
            let earlier = named.iter().filter(|(_, other)| other.name() == term.name()).count();
            let name = if earlier == 0 { term.name().to_string() } else { format!("{}_{}", term.name(), earlier + 1) };
            named.push((name, term.clone()));
        }
        Self { task, class_weights, ignore_label, terms: named }
    }

    /// True where a teacher's output is needed.
    #[must_use]
    pub fn needs_teacher(&self) -> bool {
        !self.terms.is_empty()
    }

    /// Every term for one batch.
    ///
    /// # Shapes
    /// labels: `[N,H,W]` u8. The logits of student and teacher may have any resolution; the task terms are computed at
    /// label size (bilinear, align_corners = true), pixel KD at the finer of the two grids of logits, the similarity
    /// terms at the networks' own grids.
    ///
    /// # Errors
    /// [`Error::Setting`] for a feature that a network does not have or a missing teacher; errors of the losses.
    pub fn terms(&self, student: &Output, teacher: Option<&Output>, labels: &Tensor) -> Result<Vec<TermLoss>> {
        let mut terms = vec![TermLoss {
            name: "cross_entropy".to_string(),
            weight: 1.0,
            loss: self.cross_entropy(&student.logits, labels)?,
        }];
        if let Some(aux_logits) = &student.aux_logits
            && self.task.aux_weight > 0.0
        {
            let loss = self.cross_entropy(aux_logits, labels)?;
            terms.push(TermLoss { name: "aux_cross_entropy".to_string(), weight: self.task.aux_weight, loss });
        }
        for (name, term) in &self.terms {
            let teacher = teacher
                .ok_or_else(|| Error::Setting(format!("the term {name} needs a teacher and this stage has none")))?;
            let loss = self.distillation(term, student, teacher, labels)?;
            terms.push(TermLoss { name: name.clone(), weight: term.weight(), loss });
        }
        Ok(terms)
    }

    fn cross_entropy(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (_, height, width) = labels.dims3()?;
        let logits = at_size(logits, [height, width])?;
        let options =
            CrossEntropyOptions { ignore_label: self.ignore_label, class_weights: self.class_weights.as_deref() };
        Ok(cross_entropy(&logits, labels, options)?)
    }

    /// The mask of counted pixels; CIRKD's code knows none in its similarity terms.
    fn counted(&self, preset: Preset, labels: &Tensor) -> Result<Option<Tensor>> {
        match preset {
            Preset::PaperReading => Ok(Some(tensors::valid(labels, self.ignore_label)?)),
            Preset::CirkdCompat => Ok(None),
        }
    }

    fn distillation(&self, term: &Term, student: &Output, teacher: &Output, labels: &Tensor) -> Result<Tensor> {
        match term {
            Term::PixelKd { temperature, .. } => {
                let grid = finer(&student.logits, &teacher.logits)?;
                let valid = tensors::valid(&tensors::labels_at(labels, grid)?, self.ignore_label)?;
                let student = at_size(&student.logits, grid)?;
                let teacher = at_size(&teacher.logits.detach(), grid)?;
                let settings = similarity::PixelKd { temperature: *temperature };
                Ok(similarity::pixel_kd(&student, &teacher, Some(&valid), settings)?)
            }
            Term::Psd { preset, student: student_layers, teacher: teacher_layers, resolution_normalised, .. } => {
                let student = features("student", student, student_layers)?;
                let teacher = features("teacher", teacher, teacher_layers)?;
                let mut settings = match preset {
                    Preset::PaperReading => similarity::Psd::paper_reading(),
                    Preset::CirkdCompat => similarity::Psd::cirkd_compat(),
                };
                if *resolution_normalised {
                    settings.reduction = similarity::PsdReduction::ResolutionNormalised;
                }
                let valid = self.counted(*preset, labels)?;
                Ok(similarity::psd(&student, &teacher, valid.as_ref(), settings)?)
            }
            Term::Csd { preset, temperature, .. } => {
                let mut settings = match preset {
                    Preset::PaperReading => similarity::Csd::paper_reading(),
                    Preset::CirkdCompat => similarity::Csd::cirkd_compat(),
                };
                if let Some(temperature) = temperature {
                    settings.temperature = *temperature;
                }
                let valid = self.counted(*preset, labels)?;
                Ok(similarity::csd(&student.logits, &teacher.logits, valid.as_ref(), settings)?)
            }
        }
    }
}

/// Logits at another size; untouched where they have it.
pub(crate) fn at_size(logits: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
    let (_, _, from_height, from_width) = logits.dims4()?;
    if (from_height, from_width) == (height, width) {
        return Ok(logits.clone());
    }
    Ok(resize_bilinear(logits, [height, width], true)?)
}

fn finer(one: &Tensor, other: &Tensor) -> Result<[usize; 2]> {
    let (_, _, height, width) = one.dims4()?;
    let (_, _, other_height, other_width) = other.dims4()?;
    Ok([height.max(other_height), width.max(other_width)])
}

fn features(owner: &str, output: &Output, names: &[String]) -> Result<Vec<Tensor>> {
    names
        .iter()
        .map(|name| match output.feature(name) {
            Some(feature) => Ok(feature.tensor.clone()),
            None => {
                let have: Vec<&str> = output.features.iter().map(|feature| feature.name.as_str()).collect();
                Err(Error::Setting(format!("the {owner} has no feature {name}; it has {}", have.join(", "))))
            }
        })
        .collect()
}
