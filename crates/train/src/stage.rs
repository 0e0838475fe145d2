//! One stage of a run: training one network to its last step.
//!
//! A stage is a function of its recipe and of the pretrained weights that it names: initial weights, data order,
//! augmentation and dropout all follow from the seed, the step and the names of parameters. Stopped at any step and
//! continued, it goes on where it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use dsd_data::{Dataset, IGNORE, Loader, LoaderOptions};
use dsd_metrics::{AbsentClass, ConfusionMatrix, Summary};
use dsd_models::{ClassInfo, Mode, ModelCard, Normalisation, ParamStore, Segmenter};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::average::Average;
use crate::checkpoint::{self, Checkpoint, State};
use crate::evaluate::evaluate;
use crate::journal::{Journal, Line};
use crate::objective::{Objective, Watch};
use crate::optimiser::Optimiser;
use crate::recipe::{Recipe, Role, Term};
use crate::start::{self, Start};
use crate::step::Trained;
use crate::times::Clock;
use crate::{Error, Result, interrupt};

/// What a finished stage leaves in `done.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Training steps; 0 for a network that was loaded.
    pub steps: u64,
    /// Trainable numbers.
    pub parameters: usize,
    /// Step of the best evaluation, whose weights are in `best/`.
    pub best_step: u64,
    /// Mean IoU of the last step, 0–1.
    pub last_miou: Option<f64>,
    /// The best weights' metrics on the validation split.
    pub metrics: Summary,
    /// The last step's metrics; absent for a network that was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Summary>,
}

/// A trained network that a student is pulled to.
pub(crate) struct Teacher {
    /// Without a graph.
    pub(crate) network: Box<dyn Segmenter>,
    /// How its own inputs are scaled.
    pub(crate) normalisation: Normalisation,
}

/// What a stage works with.
pub(crate) struct Stage<'a> {
    /// `teacher`, `baseline`, `distilled`, or `METHOD/seed-N` of a comparison; its folder in the run's.
    pub(crate) name: &'a str,
    pub(crate) recipe: &'a Recipe,
    pub(crate) role: &'a Role,
    pub(crate) start: &'a Start,
    pub(crate) train: Arc<dyn Dataset>,
    pub(crate) val: Arc<dyn Dataset>,
    /// What this network has besides the task's terms.
    pub(crate) terms: &'a [Term],
    pub(crate) class_weights: Option<Vec<f64>>,
    pub(crate) teacher: Option<&'a Teacher>,
    pub(crate) run_folder: &'a Path,
}

impl Stage<'_> {
    pub(crate) fn folder(&self) -> PathBuf {
        self.run_folder.join(self.name)
    }

    /// Trains from the newest checkpoint, or from the start, to the last step.
    pub(crate) fn train(&self, journal: &mut Journal) -> Result<Finished> {
        let store = ParamStore::new(self.recipe.seed, DType::F32, &Device::Cpu);
        let num_classes = self.train.classes().names.len();
        let config = self.role.model.config()?;
        let network = dsd_models::build(&config, num_classes, store.builder())?;
        let average = match self.role.ema {
            Some(keep) => Some(Average::new(keep, &config, num_classes)?),
            None => None,
        };
        // What is evaluated and kept, and a network on it.
        let kept = average.as_ref().map_or(&store, Average::store);
        let twin = dsd_models::build(&config, num_classes, kept.frozen_builder())?;
        let mut objective = objective(self.recipe, self.class_weights.clone(), self.terms);
        self.prepare(&mut objective, twin.as_ref())?;
        let parameters = store.parameters();
        let trained = parameters.iter().cloned().chain(objective.parameters()).collect();
        let mut optimiser = Optimiser::new(self.role.optimiser, trained)
            .with_factor_below("backbone.", self.role.backbone_learning_rate_factor);
        let checkpoints = self.folder().join("checkpoints");
        checkpoint::make_folder(&checkpoints)?;

        let mut state = State::default();
        let (saved, skipped) = checkpoint::load_newest(&checkpoints)?;
        for message in skipped {
            tracing::warn!("skipped a checkpoint: {message}");
        }
        if let Some(saved) = saved {
            store.apply(saved.section("model")?)?;
            optimiser.restore(saved.section("optimiser")?, saved.state.updates)?;
            objective.restore(saved.section("objective")?)?;
            if let Some(average) = &average {
                average.store().apply(saved.section("average")?)?;
            }
            state = saved.state;
            tracing::info!("{}: continuing after step {}", self.name, state.step);
        } else {
            let (key, _) = self.recipe.settings(self.name);
            start::lay_over(key, self.start, &config, num_classes, &store)?;
        }
        journal.rewind(self.name, &state)?;

        let mut watch = Watch::default();
        let mut clock = Clock::start(&self.folder());
        let bar = self.bar(state.step);
        let mut loader = Loader::new(
            Arc::clone(&self.train),
            Arc::new(augmentation(self.recipe, &self.start.normalisation)),
            LoaderOptions {
                batch_size: self.role.batch_size,
                seed: self.recipe.seed,
                workers: self.recipe.run.workers,
                prefetch: self.recipe.run.prefetch,
                first_step: state.step * self.role.accumulate,
            },
        )?;
        loop {
            // Evaluation and checkpoint of the step before come first, so that a stage stopped between the two does
            // them when it is continued.
            let last = state.step >= self.role.steps;
            if (last || state.step.is_multiple_of(self.recipe.evaluation.every)) && state.evaluated < state.step {
                bar.set_message("evaluating");
                match self.evaluate(twin.as_ref()) {
                    Err(_) if interrupt::requested() => {}
                    matrix => self.keep_best(&matrix?, kept, &config, journal, &mut state, &bar)?,
                }
            }
            let stop = interrupt::requested();
            if stop || last || (state.step > 0 && state.step.is_multiple_of(self.recipe.run.checkpoint_every)) {
                let mut saved = Checkpoint::new(state.clone())
                    .with("model", store.tensors())
                    .with("optimiser", optimiser.tensors()?)
                    .with("objective", objective.tensors()?);
                if let Some(average) = &average {
                    saved = saved.with("average", average.store().tensors());
                }
                // What the checkpoint counts as done is in the log, whatever happens after.
                journal.sync()?;
                checkpoint::save(&checkpoints, &saved)?;
                clock.keep()?;
            }
            if stop {
                bar.finish_and_clear();
                let (role, folder) = (self.name.to_string(), self.run_folder.to_path_buf());
                return Err(Error::Interrupted { role, step: state.step, folder });
            }
            if last {
                break;
            }

            clock.begin_step();
            let learning_rate = optimiser.base_rate() * self.role.schedule.factor(state.step, self.role.steps);
            let before = self.before(&store, &objective)?;
            let trained = Trained { network: network.as_ref(), parameters: &parameters };
            let done = self.step(trained, &mut objective, &mut optimiser, &mut loader, learning_rate, state.step);
            let line = self.tolerate(done, before, &store, &mut objective, &mut state)?;
            state.step += 1;
            if let Some(average) = average.as_ref().filter(|_| optimiser.updates() > state.updates) {
                average.follow(&store, optimiser.updates())?;
            }
            state.updates = optimiser.updates();
            clock.end_step();
            show(&bar, state.step, &line);
            tracing::debug!("{}, step {} is done", self.name, state.step);
            let telling = match &line {
                Line::Step { shares, .. } => {
                    for warning in watch.look(shares) {
                        bar.suspend(|| tracing::warn!("{}, step {}: {warning}", self.name, state.step));
                    }
                    !shares.is_empty()
                }
                _ => true,
            };
            let due = state.step.is_multiple_of(self.recipe.run.log_every) || telling;
            if due || state.step == 1 || state.step == self.role.steps {
                journal.write(&line)?;
            }
        }
        bar.finish_and_clear();
        self.finish(&state, &store)
    }

    /// Makes the objective's adaptors, memories and critics, by a forward pass of one empty image.
    fn prepare(&self, objective: &mut Objective, twin: &dyn Segmenter) -> Result<()> {
        let Some(teacher) = self.teacher.filter(|_| objective.needs_teacher()) else { return Ok(()) };
        let [height, width] = self.recipe.augmentation.crop;
        let image = Tensor::zeros((1, 3, height, width), DType::F32, &Device::Cpu)?;
        let (student, teacher) = (twin.forward(&image, Mode::Eval)?, teacher.network.forward(&image, Mode::Eval)?);
        objective.prepare(self.recipe.seed, &student, Some(&teacher))
    }

    fn evaluate(&self, twin: &dyn Segmenter) -> Result<ConfusionMatrix> {
        let normalisation = data_normalisation(&self.start.normalisation);
        evaluate(twin, self.val.as_ref(), &normalisation, self.recipe.evaluation.batch_size, |_| ())
    }

    /// Logs an evaluation and keeps the weights if none was better.
    fn keep_best(
        &self,
        matrix: &ConfusionMatrix,
        store: &ParamStore,
        config: &dsd_models::ModelConfig,
        journal: &mut Journal,
        state: &mut State,
        bar: &ProgressBar,
    ) -> Result<()> {
        let value = matrix.miou(AbsentClass::Skip).unwrap_or(0.0);
        let pixel_accuracy = matrix.pixel_accuracy().unwrap_or(0.0);
        journal.write(&Line::Evaluation {
            role: self.name.to_string(),
            step: state.step,
            miou: value,
            pixel_accuracy,
        })?;
        bar.suspend(|| {
            tracing::info!(
                "{}, step {} of {}: mIoU {:.2} %, pixel accuracy {:.2} %",
                self.name,
                state.step,
                self.role.steps,
                100.0 * value,
                100.0 * pixel_accuracy
            );
        });
        (state.evaluated, state.last_miou) = (state.step, Some(value));
        let metrics = summary(matrix, self.val.as_ref())?;
        let bytes = serde_json::to_vec_pretty(&metrics).map_err(|error| Error::file(&self.folder(), error))?;
        if state.best.is_none_or(|(_, best)| value > best) {
            state.best = Some((state.step, value));
            let card = self.card(config, state.step, &metrics)?;
            dsd_models::save(&self.folder().join("best"), &card, &store.tensors())?;
            checkpoint::write_whole(&self.folder().join("best").join("metrics.json"), &bytes)?;
        }
        checkpoint::write_whole(&self.folder().join("last.json"), &bytes)
    }

    fn card(&self, config: &dsd_models::ModelConfig, step: u64, metrics: &Summary) -> Result<ModelCard> {
        let classes = self.train.classes();
        let classes = classes
            .names
            .iter()
            .zip(&classes.colours)
            .map(|(name, colour)| ClassInfo { name: name.clone(), colour: *colour })
            .collect();
        let mut training = serde_json::json!({
            "run": self.recipe.name,
            "role": self.name,
            "step": step,
            "seed": self.recipe.seed,
            "dataset": self.recipe.data.dataset,
            "val_split": self.recipe.data.val_split,
            "val_miou": metrics.miou,
            "dsd_version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(origin) = &self.start.pretrained {
            training["pretrained"] = serde_json::json!(origin);
        }
        Ok(ModelCard {
            format_version: dsd_models::FORMAT_VERSION,
            model: *config,
            classes,
            normalisation: self.start.normalisation,
            weights_sha256: String::new(),
            training,
        })
    }

    fn finish(&self, state: &State, store: &ParamStore) -> Result<Finished> {
        let metrics = |path: PathBuf| -> Result<Summary> {
            let bytes = std::fs::read(&path).map_err(|error| Error::file(&path, error))?;
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))
        };
        let finished = Finished {
            steps: state.step,
            parameters: store.parameters().iter().map(|parameter| parameter.var.as_tensor().elem_count()).sum(),
            best_step: state.best.map_or(0, |(step, _)| step),
            last_miou: state.last_miou,
            metrics: metrics(self.folder().join("best").join("metrics.json"))?,
            last: Some(metrics(self.folder().join("last.json"))?),
        };
        write_finished(&self.folder(), &finished)?;
        Ok(finished)
    }

    fn bar(&self, step: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(self.role.steps), ProgressDrawTarget::stderr());
        let template = "{prefix:>9} {bar:24} {pos}/{len} {per_sec} left {eta} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(self.name.to_string());
        bar.set_position(step);
        bar.reset_eta();
        bar
    }
}

/// The result of the stage in this folder if it is finished.
pub(crate) fn finished(folder: &Path) -> Result<Option<Finished>> {
    let path = folder.join("done.json");
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::file(&path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(&path, error)),
    }
}

/// Writes `done.json`: the mark that a stage needs no more work.
pub(crate) fn write_finished(folder: &Path, finished: &Finished) -> Result<()> {
    let path = folder.join("done.json");
    let bytes = serde_json::to_vec_pretty(finished).map_err(|error| Error::file(&path, error))?;
    checkpoint::write_whole(&path, &bytes)
}

/// The metrics of a confusion matrix with the dataset's class names.
pub(crate) fn summary(matrix: &ConfusionMatrix, dataset: &dyn Dataset) -> Result<Summary> {
    Ok(matrix.summary(&dataset.classes().names)?)
}

/// The objective of a stage; `IGNORE` is the label that counts nowhere.
pub(crate) fn objective(recipe: &Recipe, class_weights: Option<Vec<f64>>, terms: &[Term]) -> Objective {
    Objective::new(&recipe.task, recipe.objective, class_weights, IGNORE, terms)
}

/// The same numbers in the data crate's type.
pub(crate) fn data_normalisation(normalisation: &Normalisation) -> dsd_data::Normalisation {
    dsd_data::Normalisation { mean: normalisation.mean, std: normalisation.std }
}

fn augmentation(recipe: &Recipe, normalisation: &Normalisation) -> dsd_data::Augmentation {
    let settings = &recipe.augmentation;
    dsd_data::Augmentation {
        scale: dsd_data::ScaleRange { min: settings.scale[0], max: settings.scale[1], step: settings.scale_step },
        crop: settings.crop,
        flip: settings.flip,
        brightness: settings.brightness,
        contrast: settings.contrast,
        saturation: settings.saturation,
        normalisation: data_normalisation(normalisation),
    }
}

fn show(bar: &ProgressBar, step: u64, line: &Line) {
    if let Line::Step { total, terms, .. } = line {
        let parts: Vec<String> = terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        bar.set_message(format!("loss {total:.3} ({})", parts.join(", ")));
    }
    bar.set_position(step);
}
