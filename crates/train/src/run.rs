//! A whole run: teacher, baseline and, where there is something to distil, the distilled student; then the table and the
//! page.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use dsd_data::Dataset;
use dsd_metrics::{AbsentClass, Summary};
use dsd_models::{Mode, Output, ParamStore};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{make_folder, sweep, write_whole};
use crate::environment::Environment;
use crate::journal::Journal;
use crate::objective::Progress;
use crate::recipe::{Recipe, Role, Term};
use crate::splits::{class_weights, open};
use crate::stage::{self, Finished, Stage, Teacher};
use crate::start::{self, Starts};
use crate::{Error, Result, report};

/// The final table of a run: `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The large network.
    pub teacher: Summary,
    /// The compact network, trained alone.
    pub baseline: Summary,
    /// The compact network, pulled to the teacher; absent where the recipe has no distillation terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distilled: Option<Summary>,
}

/// Where and how a run is made.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// The run's folder; absent: `runs/NAME`, or the next free `runs/NAME-2`, …
    pub out: Option<PathBuf>,
    /// Go on with the run that is in the folder.
    pub resume: bool,
}

/// Trains all networks of a recipe and writes the run's folder; returns its path.
///
/// # Errors
/// The first thing that goes wrong, naming its culprit. [`Error::Interrupted`] after a stop that was asked for: the
/// folder then holds a checkpoint.
pub fn train(recipe: &Recipe, settings: &RunSettings) -> Result<PathBuf> {
    let run = Run::open(recipe, settings, &[("distillation", &recipe.distillation)])?;
    let mut journal = Journal::open(&run.folder)?;
    let teacher_done = run.finish_teacher(&mut journal)?;
    let baseline_done = finish(&run.stage("baseline", recipe, &recipe.student, &[])?, &mut journal)?;
    let distilled_done = if recipe.distillation.is_empty() {
        None
    } else {
        let teacher = run.teacher()?;
        let distilled = run.stage("distilled", recipe, &recipe.student, &recipe.distillation)?;
        Some(finish(&Stage { teacher: Some(&teacher), ..distilled }, &mut journal)?)
    };

    let metrics = Metrics {
        teacher: teacher_done.metrics,
        baseline: baseline_done.metrics,
        distilled: distilled_done.map(|done| done.metrics),
    };
    let folder = run.folder;
    let bytes = serde_json::to_vec_pretty(&metrics).map_err(|error| Error::file(&folder, error))?;
    write_whole(&folder.join("metrics.json"), &bytes)?;
    report::write(&folder)?;
    Ok(folder)
}

/// The open folder of a run or a comparison with what all its networks share; other processes are kept out.
pub(crate) struct Run<'a> {
    recipe: &'a Recipe,
    pub(crate) folder: PathBuf,
    train: Arc<dyn Dataset>,
    val: Arc<dyn Dataset>,
    class_weights: Option<Vec<f64>>,
    starts: Starts,
    /// Multiply-adds of each objective's adaptors, forward, for one image of the crop's size.
    pub(crate) adaptors: Vec<u64>,
    _lock: File,
}

impl<'a> Run<'a> {
    /// Starts a run in its folder or takes up the one that is there. `objectives` are the lists of terms that students
    /// will be trained with, by name: a recipe that cannot work leaves no folder that "holds a run already".
    pub(crate) fn open(recipe: &'a Recipe, settings: &RunSettings, objectives: &[(&str, &[Term])]) -> Result<Self> {
        let folder = run_folder(recipe, settings)?;
        let train = open(&recipe.data, &recipe.data.train_split, recipe.seed, recipe.data.train_count)?;
        let val = open(&recipe.data, &recipe.data.val_split, recipe.seed, recipe.data.val_count)?;
        let num_classes = train.classes().len();
        for role in [&recipe.teacher, &recipe.student] {
            dsd_models::parameter_count(&role.model.config()?, num_classes)?;
        }
        let starts = start::settle(recipe, num_classes, &folder)?;
        let adaptors = rehearse(recipe, num_classes, objectives)?;
        make_folder(&folder)?;
        let lock = lock(&folder)?;
        dsd_kernels::conv2d::set_exact(recipe.run.exact);
        sweep(&folder, &recipe.places())?;
        keep_recipe(recipe, &folder)?;
        keep_environment(&folder)?;
        start::keep(&starts, &folder)?;
        tracing::info!(
            "{}: {} training and {} validation images of {}, {num_classes} classes; folder {}",
            recipe.name,
            train.len(),
            val.len(),
            recipe.data.dataset,
            folder.display()
        );
        let class_weights = class_weights(recipe.task.class_weights, train.as_ref())?;
        Ok(Self { recipe, folder, train, val, class_weights, starts, adaptors, _lock: lock })
    }

    /// The number of classes of the data.
    pub(crate) fn num_classes(&self) -> usize {
        self.train.classes().len()
    }

    /// A stage without a teacher; `recipe` is the run's own but for its seed.
    pub(crate) fn stage<'s>(
        &'s self,
        name: &'s str,
        recipe: &'s Recipe,
        role: &'s Role,
        terms: &'s [Term],
    ) -> Result<Stage<'s>> {
        Ok(Stage {
            name,
            recipe,
            role,
            start: start::of(&self.starts, recipe.settings(name).0)?,
            train: Arc::clone(&self.train),
            val: Arc::clone(&self.val),
            terms,
            class_weights: self.class_weights.clone(),
            teacher: None,
            run_folder: &self.folder,
        })
    }

    /// Trains the teacher to its last step or takes over the saved one, unless that was done before.
    pub(crate) fn finish_teacher(&self, journal: &mut Journal) -> Result<Finished> {
        let Some(weights) = &self.recipe.teacher.weights else {
            return finish(&self.stage("teacher", self.recipe, &self.recipe.teacher, &[])?, journal);
        };
        match stage::finished(&self.folder.join("teacher"))? {
            Some(done) => Ok(done),
            None => take_teacher(self.recipe, weights, &self.folder, self.val.as_ref()),
        }
    }

    /// The finished teacher, from the folder that anybody else would load.
    pub(crate) fn teacher(&self) -> Result<Teacher> {
        let saved = dsd_models::load(&self.folder.join("teacher").join("best"))?;
        Ok(Teacher { network: saved.segmenter()?, normalisation: saved.card.normalisation })
    }
}

/// Trains a stage to its last step, unless that was done before.
pub(crate) fn finish(stage: &Stage<'_>, journal: &mut Journal) -> Result<Finished> {
    match stage::finished(&stage.folder())? {
        Some(finished) => {
            tracing::info!("{}: finished already", stage.name);
            Ok(finished)
        }
        None => stage.train(journal),
    }
}

/// One forward pass of untrained networks through each objective, so that a feature that does not exist or layers that
/// do not fit are named before a teacher is trained for them; the multiply-adds of each objective's adaptors for one crop.
fn rehearse(recipe: &Recipe, num_classes: usize, objectives: &[(&str, &[Term])]) -> Result<Vec<u64>> {
    let [height, width] = recipe.augmentation.crop;
    let images = Tensor::zeros((1, 3, height, width), DType::F32, &Device::Cpu)?;
    let labels = Tensor::zeros((1, height, width), DType::U8, &Device::Cpu)?;
    let output = |role: &Role| -> Result<Output> {
        let store = ParamStore::new(recipe.seed, DType::F32, &Device::Cpu);
        let config = role.model.config()?;
        dsd_models::build(&config, num_classes, store.builder())?;
        Ok(dsd_models::build(&config, num_classes, store.frozen_builder())?.forward(&images, Mode::Eval)?)
    };
    let (student, teacher) = (output(&recipe.student)?, output(&recipe.teacher)?);
    let first = Progress { seed: recipe.seed, step: 0, steps: recipe.student.steps };
    objectives
        .iter()
        .map(|(name, terms)| {
            let mut objective = stage::objective(recipe, None, terms);
            let outcome = objective.prepare(recipe.seed, &student, Some(&teacher)).and_then(|()| {
                objective.evaluate(first, &student, Some(&teacher), &labels, &[])?;
                objective.multiply_adds(&student)
            });
            outcome.map_err(|error| Error::Setting(format!("{name}: {error}")))
        })
        .collect()
}

/// Evaluates a saved teacher and copies it into the run, which stays complete in itself.
fn take_teacher(recipe: &Recipe, weights: &Path, folder: &Path, val: &dyn Dataset) -> Result<Finished> {
    let saved = dsd_models::load(weights)?;
    let classes = val.classes();
    let theirs: Vec<&str> = saved.card.classes.iter().map(|class| class.name.as_str()).collect();
    if theirs != classes.names {
        let message =
            format!("the teacher's classes are {}, the dataset's {}", theirs.join(", "), classes.names.join(", "));
        return Err(Error::file(weights, message));
    }
    if let Some(stated) = recipe.teacher.normalisation {
        let source = weights.display().to_string();
        start::agreed("teacher.normalisation", stated, &source, saved.card.normalisation)?;
    }
    let named = recipe.teacher.model.config()?;
    if saved.card.model != named {
        let message = format!("the saved teacher is {:?}, the recipe's teacher.model says {named:?}", saved.card.model);
        return Err(Error::file(weights, message));
    }
    let normalisation = stage::data_normalisation(&saved.card.normalisation);
    let model = saved.segmenter()?;
    let matrix = crate::evaluate::evaluate(model.as_ref(), val, &normalisation, recipe.evaluation.batch_size, |_| ())?;
    let miou = matrix.miou(AbsentClass::Skip);
    tracing::info!("teacher from {}: mIoU {:.2} %", weights.display(), 100.0 * miou.unwrap_or(0.0));
    let metrics = stage::summary(&matrix, val)?;
    let parameters = dsd_models::parameter_count(&saved.card.model, theirs.len())?;
    dsd_models::save(&folder.join("teacher").join("best"), &saved.card, &saved.tensors)?;
    let finished = Finished { steps: 0, parameters, best_step: 0, last_miou: miou, metrics, last: None };
    stage::write_finished(&folder.join("teacher"), &finished)?;
    Ok(finished)
}

/// The folder of the run, by the settings.
fn run_folder(recipe: &Recipe, settings: &RunSettings) -> Result<PathBuf> {
    let numbered = |number: usize| match number {
        1 => Path::new("runs").join(&recipe.name),
        _ => Path::new("runs").join(format!("{}-{number}", recipe.name)),
    };
    let used = |folder: &Path| folder.join("recipe.toml").exists();
    match (&settings.out, settings.resume) {
        (Some(out), false) if used(out) => {
            Err(Error::file(out, "holds a run already; continue it with --resume or choose another --out"))
        }
        (Some(out), true) if !used(out) => Err(Error::file(out, "holds no run to resume")),
        (Some(out), _) => Ok(out.clone()),
        (None, false) => Ok((1..).map(numbered).find(|folder| !used(folder)).unwrap_or_else(|| numbered(1))),
        (None, true) => (1..)
            .map(numbered)
            .take_while(|folder| used(folder))
            .last()
            .ok_or_else(|| Error::file(&numbered(1), "holds no run to resume")),
    }
}

/// Writes the resolved recipe, or compares it with the one that the run was started with.
fn keep_recipe(recipe: &Recipe, folder: &Path) -> Result<()> {
    let path = folder.join("recipe.toml");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
        let before = Recipe::parse(&path.display().to_string(), &text, &[])?;
        let changed = crate::recipe::differences(&before, recipe)?;
        if !changed.is_empty() {
            let message = format!("the run was started with another recipe: {}", changed.join("; "));
            return Err(Error::file(&path, message));
        }
        return Ok(());
    }
    write_whole(&path, recipe.to_toml()?.as_bytes())
}

fn keep_environment(folder: &Path) -> Result<()> {
    let path = folder.join("environment.json");
    if path.exists() {
        return Ok(());
    }
    let bytes = serde_json::to_vec_pretty(&Environment::here()).map_err(|error| Error::file(&path, error))?;
    write_whole(&path, &bytes)
}

/// Holds the run's folder for this process alone.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("run.lock");
    let file = File::create(&path).map_err(|error| Error::file(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::file(folder, "another process is working on this run; wait for it or choose another --out"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(Error::file(&path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_comparisons_fits_its_networks() {
        let mut methods = 0;
        for (name, _) in crate::recipe::SHIPPED {
            let recipe = Recipe::read(name, &[]).unwrap();
            let Some(comparison) = &recipe.comparison else { continue };
            let objectives: Vec<(&str, &[Term])> =
                comparison.methods.iter().map(|method| (method.name.as_str(), &method.terms[..])).collect();
            let adaptors = rehearse(&recipe, 11, &objectives).unwrap_or_else(|error| panic!("{name}: {error}"));
            methods += adaptors.len();
            for (method, adaptors) in comparison.methods.iter().zip(adaptors) {
                // Features on the head, 64 channels to the teacher's 128 at a sixteenth of the crop; ENet's have 128.
                let expected = match (name, method.name.as_str()) {
                    ("compare-camvid", "cwd") => 64 * 128 * 15 * 20,
                    ("compare-camvid-mobilenet", "cwd") => 64 * 128 * 12 * 15,
                    _ => 0,
                };
                assert_eq!(adaptors, expected, "{name}: {}", method.name);
            }
        }
        assert!(methods > 30, "{methods}");
    }

    #[test]
    fn a_folder_that_is_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).unwrap_err().to_string().contains("another process"));
        drop(held);
        lock(folder.path()).unwrap();
    }
}
