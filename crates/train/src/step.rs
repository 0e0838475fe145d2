//! One training step: batches, the objective, the gradient, the update; and what happens where a number is not finite.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use dsd_data::Loader;
use dsd_models::{Mode, ParamStore, Parameter, Segmenter, first_not_finite, is_finite};

use crate::checkpoint::{Section, State};
use crate::journal::Line;
use crate::objective::{Objective, Progress};
use crate::optimiser::Optimiser;
use crate::recipe::OnNotFinite;
use crate::stage::Stage;
use crate::{Error, Result, tensors};

/// So many steps in a row that are not finite end a run that may skip some.
const SKIPPED_IN_A_ROW: u64 = 20;

/// The network that is trained, with its own parameters.
#[derive(Clone, Copy)]
pub(crate) struct Trained<'a> {
    pub(crate) network: &'a dyn Segmenter,
    pub(crate) parameters: &'a [Parameter],
}

/// What a step changes before it is known to be finite: running statistics, and the objective's own tensors.
pub(crate) struct Before {
    statistics: Section,
    objective: Section,
}

impl Stage<'_> {
    /// One update of the parameters from the mean gradient of one or several batches, each of which is normalised by its
    /// own statistics and draws its own dropout.
    ///
    /// # Errors
    /// [`Error::NotFinite`]: parameters and optimiser are unchanged then.
    pub(crate) fn step(
        &self,
        trained: Trained<'_>,
        objective: &mut Objective,
        optimiser: &mut Optimiser,
        loader: &mut Loader,
        learning_rate: f64,
        step: u64,
    ) -> Result<Line> {
        let batches = self.role.accumulate;
        let at = Progress { seed: self.recipe.seed, step, steps: self.role.steps };
        let (mut total, mut terms, mut weighted, mut shares) = (0.0, BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut gradients: Option<GradStore> = None;
        for part in 0..batches {
            let mut batch = loader.next().ok_or_else(|| Error::Setting("the loader ended early".to_string()))??;
            let names = std::mem::take(&mut batch.names);
            let (images, labels) = tensors::from_batch(batch, &Device::Cpu)?;
            let teacher = match self.teacher {
                Some(teacher) if objective.needs_teacher() => {
                    let images = tensors::renormalised(&images, &self.start.normalisation, &teacher.normalisation)?;
                    Some(teacher.network.forward(&images, Mode::Eval)?)
                }
                _ => None,
            };
            let mode = Mode::Train { seed: self.recipe.seed, step: step * batches + part };
            let tape = dsd_ops::Tape::start();
            let student = if self.role.recompute {
                dsd_models::with_recomputed_blocks(|| trained.network.forward(&images, mode))?
            } else {
                trained.network.forward(&images, mode)?
            };
            let evaluation = objective.evaluate(at, &student, teacher.as_ref(), &labels, trained.parameters)?;
            let not_finite = |term: &str, value: f64, place: String| Error::NotFinite {
                role: self.name.to_string(),
                step: step + 1,
                term: term.to_string(),
                value,
                place: place.into(),
                samples: names.join(", "),
            };
            let mut sum: Option<Tensor> = None;
            for term in &evaluation.terms {
                let value = f64::from(term.loss.to_scalar::<f32>()?);
                if !value.is_finite() {
                    return Err(not_finite(&term.name, value, place(trained.network, &images, mode)?));
                }
                let share = term.weight / batches as f64;
                *terms.entry(term.name.clone()).or_insert(0.0) += value / batches as f64;
                *weighted.entry(term.name.clone()).or_insert(0.0) += share * value;
                total += share * value;
                let loss = (&term.loss * share)?;
                sum = Some(match sum {
                    Some(sum) => (sum + loss)?,
                    None => loss,
                });
            }
            for (name, share) in evaluation.shares {
                *shares.entry(name).or_insert(0.0) += share / batches as f64;
            }
            if let Some(sum) = sum {
                let found = tape.finish(&sum)?;
                let norm = optimiser.gradient_norm(&found)?;
                if !norm.is_finite() {
                    return Err(not_finite("gradient norm", norm, optimiser.not_finite(&found)?));
                }
                match &mut gradients {
                    Some(gradients) => gradients.extend(found)?,
                    None => gradients = Some(found),
                }
            }
            objective.finish(at, &student, teacher.as_ref(), &labels)?;
        }
        if let Some(gradients) = gradients {
            optimiser.step(&gradients, learning_rate)?;
        }
        Ok(Line::Step { role: self.name.to_string(), step: step + 1, learning_rate, total, terms, weighted, shares })
    }

    /// What [`Stage::tolerate`] would go back to; `None` where the recipe does not ask for it.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn before(&self, store: &ParamStore, objective: &Objective) -> Result<Option<Before>> {
        if self.recipe.run.on_not_finite == OnNotFinite::Stop {
            return Ok(None);
        }
        let copies = |tensors: &mut dyn Iterator<Item = (String, Tensor)>| -> Result<Section> {
            tensors.map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
        };
        let statistics = copies(&mut store.buffers().into_iter())?;
        Ok(Some(Before { statistics, objective: copies(&mut objective.tensors()?.into_iter())? }))
    }

    /// Turns a step that was not finite into a line of the log where the recipe says so, and takes back what it changed.
    ///
    /// # Errors
    /// The step's own, where it is to end the run, and after many such steps in a row.
    pub(crate) fn tolerate(
        &self,
        done: Result<Line>,
        before: Option<Before>,
        store: &ParamStore,
        objective: &mut Objective,
        state: &mut State,
    ) -> Result<Line> {
        let (before, role, step, term, value, place) = match (done, before) {
            (Err(Error::NotFinite { role, step, term, value, place, .. }), Some(before))
                if state.skipped_in_a_row + 1 < SKIPPED_IN_A_ROW =>
            {
                (before, role, step, term, value, place)
            }
            (done, _) => {
                state.skipped_in_a_row = 0;
                return done;
            }
        };
        let mut tensors = store.tensors();
        tensors.extend(before.statistics);
        store.apply(&tensors)?;
        objective.restore(&before.objective)?;
        state.skipped += 1;
        state.skipped_in_a_row += 1;
        tracing::warn!("{role}, step {step} changed nothing: {term} is {value}; {place}");
        Ok(Line::Skipped { role, step, term, value: value.to_string(), place: place.into() })
    }
}

/// What a batch that gave a loss that is not finite shows when it goes through the network again.
fn place(network: &dyn Segmenter, images: &Tensor, mode: Mode) -> Result<String> {
    if !is_finite(images)? {
        return Ok("the images are not finite".to_string());
    }
    Ok(match first_not_finite(network, images, mode)? {
        Some(layer) => format!("the first output that is not finite is that of {layer}"),
        None => "all outputs of the network are finite".to_string(),
    })
}
