//! How long each method trains and what a step of it costs: `plan.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::recipe::{Comparison, Method, Recipe};
use crate::{Error, Result, stage};

const FILE: &str = "plan.json";

/// The methods in the comparison's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One entry for each method.
    pub methods: Vec<Planned>,
}

/// What is settled of a method before anything is trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The method's name.
    pub name: String,
    /// Its training steps.
    pub steps: u64,
    /// What one step costs.
    pub multiply_adds: MultiplyAdds,
}

/// Multiply-adds of one training step, the whole batch at the size of the crop.
///
/// As [`dsd_models::multiply_adds`] counts them: convolutions, without auxiliary heads. A backward pass counts as two
/// forward passes. The arithmetic of the losses themselves is not in it; seconds per step show that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiplyAdds {
    /// The student, forward and backward: 3 · forward · batch.
    pub student: u64,
    /// The teacher, forward, where a term needs it: forward · batch.
    pub teacher: u64,
    /// The adaptors between features of different channels, forward and backward, as the student.
    pub adaptors: u64,
}

impl MultiplyAdds {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.student + self.teacher + self.adaptors
    }
}

impl Plan {
    /// The plan of a recipe's comparison; adaptors: the multiply-adds of each method's, forward, for one image.
    pub(super) fn of(recipe: &Recipe, comparison: &Comparison, num_classes: usize, adaptors: &[u64]) -> Result<Self> {
        let batch = recipe.student.batch_size as u64;
        let crop = recipe.augmentation.crop;
        let student = 3 * batch * dsd_models::multiply_adds(&recipe.student.model.config()?, num_classes, crop)?;
        let teacher = batch * dsd_models::multiply_adds(&recipe.teacher.model.config()?, num_classes, crop)?;
        let cost = |method: &Method| {
            let taught = stage::objective(recipe, None, &method.terms).needs_teacher();
            let place = comparison.methods.iter().position(|other| other.name == method.name);
            let adaptors = place.and_then(|place| adaptors.get(place)).copied().unwrap_or(0);
            MultiplyAdds { student, teacher: if taught { teacher } else { 0 }, adaptors: 3 * batch * adaptors }
        };
        let scaled = |factor: f64| ((recipe.student.steps as f64 * factor).round() as u64).max(1);
        let mut methods = Vec::with_capacity(comparison.methods.len());
        for method in &comparison.methods {
            let own = cost(method);
            let steps = match method.match_compute_of.as_deref().and_then(|name| comparison.method(name)) {
                Some(other) => {
                    let ratio = cost(other).total() as f64 / own.total() as f64;
                    scaled(other.steps_factor.unwrap_or(1.0) * ratio)
                }
                None => scaled(method.steps_factor.unwrap_or(1.0)),
            };
            methods.push(Planned { name: method.name.clone(), steps, multiply_adds: own });
        }
        Ok(Self { methods })
    }

    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::file(&path, error))?;
        write_whole(&path, &bytes)
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = std::fs::read(&path).map_err(|error| Error::file(&path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_baseline_has_the_compute_of_the_method_it_matches() {
        let recipe = Recipe::read("compare-quick", &["student.steps=1000".to_string()]).unwrap();
        let comparison = recipe.comparison.as_ref().unwrap();
        let plan = Plan::of(&recipe, comparison, 11, &[0, 0, 1000]).unwrap();
        let planned = |name: &str| plan.methods.iter().find(|method| method.name == name).unwrap();
        let [plain, longer, dsd] = ["baseline", "baseline_longer", "dsd"].map(planned);
        assert_eq!((plain.steps, dsd.steps, plain.multiply_adds.teacher), (1000, 1000, 0));
        let forward = |role: &crate::recipe::Role| {
            dsd_models::multiply_adds(&role.model.config().unwrap(), 11, recipe.augmentation.crop).unwrap()
        };
        let batch = recipe.student.batch_size as u64;
        assert_eq!(dsd.multiply_adds.student, 3 * batch * forward(&recipe.student));
        assert_eq!(dsd.multiply_adds.teacher, batch * forward(&recipe.teacher));
        assert_eq!(dsd.multiply_adds.adaptors, 3 * batch * 1000);
        let compute = |method: &Planned| method.steps as f64 * method.multiply_adds.total() as f64;
        assert!(longer.steps > 1000);
        assert!((compute(longer) / compute(dsd) - 1.0).abs() < 1e-3, "{} against {}", longer.steps, dsd.steps);
    }
}
