//! The objective: what a step minimises, term by term.
//!
//! Losses know no model, recipe or state. Here the names of features are looked up, sizes that differ are brought
//! together, weights follow their schedules, and what a loss needs besides tensors (adaptors, a memory, a critic) is
//! kept: `companions`. `losses` maps a recipe's name to its function, `share` measures what each term does to the
//! gradient.

mod companions;
mod losses;
mod share;

use std::collections::BTreeMap;

use candle_core::Tensor;
use dsd_models::{Output, Parameter};
use dsd_ops::{CrossEntropyOptions, cross_entropy};

use crate::recipe::{Balance, ObjectiveOptions, Task, Term};
use crate::{Error, Result};

use companions::{ADAPTORS, Companions};
pub(crate) use losses::at_size;
use share::Balancer;
pub(crate) use share::{Watch, median, verdict};

/// The name of the auxiliary head's term.
const AUX: &str = "aux_cross_entropy";

/// Where a training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The run's seed.
    pub seed: u64,
    /// The step, from 0.
    pub step: u64,
    /// All steps.
    pub steps: u64,
}

/// One term of a step's loss.
#[derive(Clone, Debug)]
pub struct TermLoss {
    /// The term's name, unique in the objective.
    pub name: String,
    /// Its factor in the total, schedule included.
    pub weight: f64,
    /// Its value before the factor: `[]` float with a graph to the student.
    pub loss: Tensor,
}

/// What the objective says about a batch.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The terms; the total is the sum of weight · loss.
    pub terms: Vec<TermLoss>,
    /// Each term's share of the gradient's norm, where it was measured: sums to 1.
    pub shares: BTreeMap<String, f64>,
}

/// The whole objective of one network.
#[derive(Debug)]
pub struct Objective {
    aux_weight: f64,
    class_weights: Option<Vec<f64>>,
    ignore_label: u8,
    options: ObjectiveOptions,
    terms: Vec<(String, Term)>,
    companions: Companions,
    balancer: Balancer,
}

impl Objective {
    /// The task's terms with the given class weights, and `terms` against a teacher (none for a network trained alone).
    /// Terms of weight 0 are left out.
    #[must_use]
    pub fn new(
        task: &Task,
        options: ObjectiveOptions,
        class_weights: Option<Vec<f64>>,
        ignore_label: u8,
        terms: &[Term],
    ) -> Self {
        let mut named: Vec<(String, Term)> = Vec::new();
        for term in task.terms.iter().chain(terms).filter(|term| term.weight > 0.0) {
            let earlier = named.iter().filter(|(_, other)| other.name() == term.name()).count();
            let name = if earlier == 0 { term.name().to_string() } else { format!("{}_{}", term.name(), earlier + 1) };
            named.push((name, term.clone()));
        }
        Self {
            aux_weight: task.aux_weight,
            class_weights,
            ignore_label,
            options,
            terms: named,
            companions: Companions::default(),
            balancer: Balancer::default(),
        }
    }

    /// True where a teacher's output is needed.
    #[must_use]
    pub fn needs_teacher(&self) -> bool {
        self.terms.iter().any(|(_, term)| term.loss.needs_teacher())
    }

    /// Makes what the terms need besides tensors, by the shapes of one output of each network.
    ///
    /// # Errors
    /// [`Error::Setting`] for a feature that a network does not have; a critic for which logits are too small.
    pub fn prepare(&mut self, seed: u64, student: &Output, teacher: Option<&Output>) -> Result<()> {
        self.companions = Companions::new(seed, &self.terms, student, teacher)?;
        Ok(())
    }

    /// The adaptors' parameters, which the student's optimiser trains; names begin with `adaptors.`.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        self.companions.parameters()
    }

    /// Multiply-adds of the adaptors in a forward pass, by the student's output that they get; critics are not counted.
    ///
    /// # Errors
    /// [`Error::Setting`] for a feature that the student does not have.
    pub fn multiply_adds(&self, student: &Output) -> Result<u64> {
        let parameters = self.parameters();
        let mut sum = 0;
        for (name, term) in &self.terms {
            let Some((layers, _)) = term.loss.layers() else { continue };
            for (index, feature) in features("student", student, layers)?.iter().enumerate() {
                let (images, _, height, width) = feature.dims4()?;
                let prefix = format!("{ADAPTORS}{name}.{index}.");
                let weights = parameters
                    .iter()
                    .filter(|parameter| parameter.name.starts_with(&prefix) && parameter.var.rank() == 4)
                    .map(|parameter| parameter.var.elem_count());
                sum += (images * height * width * weights.sum::<usize>()) as u64;
            }
        }
        Ok(sum)
    }

    /// Everything that training changes here, by name, for a checkpoint.
    ///
    /// # Errors
    /// candle's.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.companions.tensors()?;
        tensors.extend(self.balancer.tensors()?);
        Ok(tensors)
    }

    /// Takes over what [`tensors`](Self::tensors) gave, after [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// A name that is missing or unexpected, or a tensor of another shape.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.companions.restore(tensors)?;
        self.balancer.restore(tensors)
    }

    /// Every term for one batch and, where it is due, the terms' shares of the gradient.
    ///
    /// parameters: the student's, without the adaptors.
    ///
    /// # Shapes
    /// labels: `[N,H,W]` u8. The logits of student and teacher may have any resolution; the terms that need labels are
    /// computed at label size (bilinear, align_corners = true), pixel KD at the finer of the two grids of logits, the
    /// others at the networks' own grids.
    ///
    /// # Errors
    /// [`Error::Setting`] for a feature that a network does not have or a missing teacher; errors of the losses.
    pub fn evaluate(
        &mut self,
        at: Progress,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        parameters: &[Parameter],
    ) -> Result<Evaluation> {
        self.companions.remember(at, teacher, labels, self.ignore_label)?;
        let mut terms = self.terms(at, student, teacher, labels)?;
        let mut shares = BTreeMap::new();
        if terms.len() > 1 && self.is_due(at.step) {
            let norms = self.gradient_norms(at, &terms, student, teacher, labels, parameters)?;
            if self.options.balance == Balance::Share {
                self.balancer.update(&self.terms, &terms, &norms, self.options.balance_steps);
                for term in &mut terms {
                    term.weight = self.weight(&term.name, at);
                }
            }
            shares = share::shares(&terms, &norms);
        }
        Ok(Evaluation { terms, shares })
    }

    /// Lets the critics learn from the batch; after the student's update.
    ///
    /// # Errors
    /// Those of the networks.
    pub fn finish(&mut self, at: Progress, student: &Output, teacher: Option<&Output>, labels: &Tensor) -> Result<()> {
        self.companions.teach_critics(at, student, teacher, labels, self.ignore_label)
    }

    fn is_due(&self, step: u64) -> bool {
        let balancing = self.options.balance == Balance::Share && step < self.options.balance_steps;
        balancing || (self.options.share_every > 0 && step.is_multiple_of(self.options.share_every))
    }

    fn weight(&self, name: &str, at: Progress) -> f64 {
        if name == AUX {
            return self.aux_weight;
        }
        let Some((_, term)) = self.terms.iter().find(|(own, _)| own == name) else { return 0.0 };
        self.balancer.weight(name).unwrap_or(term.weight) * term.schedule.factor(at.step, at.steps)
    }

    fn terms(
        &self,
        at: Progress,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
    ) -> Result<Vec<TermLoss>> {
        let mut terms = Vec::new();
        let batch = losses::Batch::new(student, teacher, labels, self.class_weights.as_deref(), self.ignore_label)?;
        for (name, term) in &self.terms {
            let weight = self.weight(name, at);
            if weight > 0.0 {
                let loss = batch.loss(name, &term.loss, &self.companions, at)?;
                terms.push(TermLoss { name: name.clone(), weight, loss });
            }
        }
        if let Some(aux_logits) = &student.aux_logits
            && self.aux_weight > 0.0
        {
            let (_, height, width) = labels.dims3()?;
            let options =
                CrossEntropyOptions { ignore_label: self.ignore_label, class_weights: self.class_weights.as_deref() };
            let loss = cross_entropy(&at_size(aux_logits, [height, width])?, labels, options)?;
            terms.push(TermLoss { name: AUX.to_string(), weight: self.aux_weight, loss });
        }
        Ok(terms)
    }
}

/// The tensors of these features.
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

fn of_teacher<'a>(name: &str, teacher: Option<&'a Output>) -> Result<&'a Output> {
    teacher.ok_or_else(|| Error::Setting(format!("the term {name} needs a teacher and this stage has none")))
}

impl Progress {
    /// How the adaptors and critics run in a step.
    fn mode(self) -> dsd_models::Mode {
        dsd_models::Mode::Train { seed: self.seed, step: self.step }
    }
}
