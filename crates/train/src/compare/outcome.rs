//! What a comparison's folder says: every finished training, and the figures over seeds.

use std::collections::BTreeMap;
use std::path::Path;

use dsd_metrics::{ClassValues, Summary};
use serde::{Deserialize, Serialize};

use super::plan::{MultiplyAdds, Plan};
use super::statistics::Sample;
use crate::checkpoint::write_whole;
use crate::journal::{self, Line};
use crate::objective::median;
use crate::recipe::{Method, Recipe, TEACHER, place};
use crate::stage::{self, Finished};
use crate::times::{self, Times};
use crate::{Error, Result};

const FILE: &str = "comparison.json";

/// The figures of a comparison: `comparison.json`. Accuracies are fractions 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The recipe's name.
    pub name: String,
    /// The method that the others are held against.
    pub baseline: String,
    /// The seeds, finished or not.
    pub seeds: Vec<u64>,
    /// The teacher's best evaluation; absent where no method needs one or it is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Summary>,
    /// The methods in the recipe's order.
    pub methods: Vec<MethodOutcome>,
}

/// The figures of one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodOutcome {
    /// Its name.
    pub name: String,
    /// The names of its terms.
    pub terms: Vec<String>,
    /// The share of the gradient's norm that each term holds, the task's own too: the median of what was measured in
    /// its finished trainings. Empty where nothing was.
    #[serde(default)]
    pub shares: BTreeMap<String, f64>,
    /// Its training steps.
    pub steps: u64,
    /// What one step costs.
    pub multiply_adds: MultiplyAdds,
    /// Its finished trainings.
    pub runs: Vec<RunOutcome>,
    /// Mean IoU of the last step over the seeds.
    pub last_miou: Option<Sample>,
    /// Mean IoU of the best evaluation over the seeds; chosen on the split that it is measured on.
    pub best_miou: Option<Sample>,
    /// Mean IoU of the last step less that of the baseline with the same seed; absent for the baseline.
    pub difference: Option<Sample>,
    /// The same by class, in class order.
    pub class_differences: Vec<ClassDifference>,
    /// Median seconds of a training step, waiting for its batch included; the mean of the runs.
    pub seconds_per_step: Option<f64>,
    /// The most memory that was held during a training step with any seed, bytes.
    pub peak_bytes: Option<u64>,
}

/// The IoU of a class less that of the baseline with the same seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassDifference {
    /// The class.
    pub class: String,
    /// Over the seeds in which both have the class; absent without any.
    pub difference: Option<Sample>,
}

/// One finished training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOutcome {
    /// Its seed.
    pub seed: u64,
    /// Mean IoU of the last step.
    pub last_miou: Option<f64>,
    /// Mean IoU of the best evaluation.
    pub best_miou: Option<f64>,
    /// The step of the best evaluation.
    pub best_step: u64,
    /// IoU of the last step by class.
    pub iou: ClassValues,
    /// Median seconds of a training step, waiting for its batch included.
    pub seconds_per_step: Option<f64>,
    /// The most memory that was held during a training step, bytes.
    pub peak_bytes: Option<u64>,
}

impl Outcome {
    /// Reads the folder of a comparison.
    ///
    /// # Errors
    /// A file that is missing or damaged, by name; the folder of a run.
    pub fn read(folder: &Path) -> Result<Self> {
        let recipe = Recipe::of_run(folder, &[])?;
        let comparison = recipe.comparison.as_ref().ok_or_else(|| super::none_in(&recipe.name))?;
        let plan = Plan::read(folder)?;
        if !plan.methods.iter().map(|method| &method.name).eq(comparison.methods.iter().map(|method| &method.name)) {
            return Err(Error::file(folder, "plan.json and recipe.toml name different methods"));
        }
        let runs = |method: &Method| -> Result<Vec<RunOutcome>> {
            let mut runs = Vec::new();
            for &seed in &comparison.seeds {
                let own = folder.join(place(&method.name, seed));
                let finished = stage::finished(&own)?;
                runs.extend(finished.map(|finished| RunOutcome::of(seed, finished, times::read(&own))));
            }
            Ok(runs)
        };
        let baseline = match comparison.method(&comparison.baseline) {
            Some(method) => runs(method)?,
            None => Vec::new(),
        };
        let mut methods = Vec::with_capacity(plan.methods.len());
        for (method, planned) in comparison.methods.iter().zip(plan.methods) {
            let runs = runs(method)?;
            let reference = if method.name == comparison.baseline { &[][..] } else { &baseline[..] };
            let over = |value: &dyn Fn(&RunOutcome) -> Option<f64>| {
                Sample::of(&runs.iter().filter_map(value).collect::<Vec<f64>>())
            };
            let classes = reference.first().map(|run| &run.iou.0[..]).unwrap_or_default();
            methods.push(MethodOutcome {
                terms: method.terms.iter().map(|term| term.name().to_string()).collect(),
                shares: shares(folder, &method.name, &runs)?,
                last_miou: over(&|run| run.last_miou),
                best_miou: over(&|run| run.best_miou),
                difference: paired(&runs, reference, |run| run.last_miou),
                class_differences: classes
                    .iter()
                    .map(|(class, _)| ClassDifference {
                        class: class.clone(),
                        difference: paired(&runs, reference, |run| run.iou.get(class)),
                    })
                    .collect(),
                seconds_per_step: over(&|run| run.seconds_per_step).map(|sample| sample.mean),
                peak_bytes: runs.iter().filter_map(|run| run.peak_bytes).max(),
                name: planned.name,
                steps: planned.steps,
                multiply_adds: planned.multiply_adds,
                runs,
            });
        }
        Ok(Self {
            teacher: stage::finished(&folder.join(TEACHER))?.map(|finished| finished.metrics),
            name: recipe.name,
            baseline: comparison.baseline.clone(),
            seeds: comparison.seeds.clone(),
            methods,
        })
    }

    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::file(&path, error))?;
        write_whole(&path, &bytes)
    }

    /// The method that the others are held against.
    pub(super) fn reference(&self) -> Option<&MethodOutcome> {
        self.methods.iter().find(|method| method.name == self.baseline)
    }

    /// The number of seeds that all methods have finished.
    pub(super) fn finished_seeds(&self) -> usize {
        self.methods.iter().map(|method| method.runs.len()).min().unwrap_or(0)
    }
}

impl RunOutcome {
    fn of(seed: u64, finished: Finished, times: Option<Times>) -> Self {
        Self {
            seed,
            last_miou: finished.last_miou,
            best_miou: finished.metrics.miou,
            best_step: finished.best_step,
            iou: finished.last.map(|last| last.iou).unwrap_or_default(),
            seconds_per_step: times.as_ref().and_then(Times::step_seconds),
            peak_bytes: times.and_then(|times| times.peak_bytes),
        }
    }
}

/// The median share of each term in the trainings of a method.
fn shares(folder: &Path, method: &str, runs: &[RunOutcome]) -> Result<BTreeMap<String, f64>> {
    let mut seen: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for run in runs {
        for line in journal::read(&folder.join(place(method, run.seed)))? {
            let Line::Step { shares, .. } = line else { continue };
            for (term, share) in shares {
                seen.entry(term).or_default().push(share);
            }
        }
    }
    Ok(seen.into_iter().map(|(term, shares)| (term, median(&shares))).collect())
}

/// The differences between trainings with the same seed.
fn paired(runs: &[RunOutcome], reference: &[RunOutcome], value: impl Fn(&RunOutcome) -> Option<f64>) -> Option<Sample> {
    let differences: Vec<f64> = runs
        .iter()
        .filter_map(|run| {
            let other = reference.iter().find(|other| other.seed == run.seed)?;
            Some(value(run)? - value(other)?)
        })
        .collect();
    Sample::of(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, last_miou: f64) -> RunOutcome {
        RunOutcome {
            seed,
            last_miou: Some(last_miou),
            best_miou: None,
            best_step: 1,
            iou: ClassValues::default(),
            seconds_per_step: None,
            peak_bytes: None,
        }
    }

    #[test]
    fn differences_are_taken_between_equal_seeds_only() {
        let baseline = [run(1, 0.25), run(2, 0.75)];
        let method = [run(2, 1.0), run(3, 0.125), run(1, 0.375)];
        let sample = paired(&method, &baseline, |run| run.last_miou).unwrap();
        assert_eq!((sample.n, sample.mean), (2, 0.1875));
        assert!(paired(&method, &[], |run| run.last_miou).is_none());
    }
}
