//! What a network starts from: its pretrained backbone and the scale of its inputs, which belong together.
//!
//! Both are settled once, before anything is trained, and kept in the run's folder (`start.json`): a run that is
//! continued needs the pretrained file only for a network that has not begun, and then the same file.

use std::collections::BTreeMap;
use std::path::Path;

use dsd_models::weights::{self, Part, Pretrained};
use dsd_models::{ModelConfig, Normalisation, ParamStore};
use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::recipe::{Recipe, Role};
use crate::{Error, Result};

/// The file in the run's folder.
const FILE: &str = "start.json";

/// Numbers of a normalisation that differ by no more than this are the same number, written differently.
const SAME: f32 = 1e-5;

/// What one network of a run starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// How its inputs are scaled.
    pub normalisation: Normalisation,
    /// The weights of its backbone; absent: everything starts from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<Origin>,
}

/// Weights from outside the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// As the recipe names it.
    pub source: String,
    /// SHA-256 of the file, lower case hexadecimal.
    pub sha256: String,
    /// Number of tensors that were taken from it.
    pub tensors: usize,
}

/// The starts of a run's networks by role: `teacher` (where it is trained in this run) and `student`.
pub(crate) type Starts = BTreeMap<String, Start>;

/// Settles the start of every network that the recipe trains, or takes what the run's folder says.
///
/// # Errors
/// A source that is not there, with what to do; one that does not fit the network; a normalisation that contradicts the
/// weights, or none at all.
pub(crate) fn settle(recipe: &Recipe, num_classes: usize, folder: &Path) -> Result<Starts> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => return serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file(&path, error)),
    }
    let mut starts = Starts::new();
    for (name, role) in [("teacher", &recipe.teacher), ("student", &recipe.student)] {
        if role.weights.is_none() {
            starts.insert(name.to_string(), start(name, role, recipe, num_classes)?);
        }
    }
    Ok(starts)
}

/// Keeps what was settled in the run's folder.
pub(crate) fn keep(starts: &Starts, folder: &Path) -> Result<()> {
    let path = folder.join(FILE);
    let bytes = serde_json::to_vec_pretty(starts).map_err(|error| Error::file(&path, error))?;
    write_whole(&path, &bytes)
}

/// The start of a role's network, which [`settle`] has settled.
pub(crate) fn of<'a>(starts: &'a Starts, role: &str) -> Result<&'a Start> {
    starts.get(role).ok_or_else(|| Error::Setting(format!("{FILE} says nothing of the {role}")))
}

fn start(name: &str, role: &Role, recipe: &Recipe, num_classes: usize) -> Result<Start> {
    let config = role.model.config()?;
    if role.backbone_learning_rate_factor < 1.0 || role.pretrained.is_some() {
        let shapes = dsd_models::parameter_shapes(&config, num_classes)?;
        if !shapes.keys().any(|tensor| tensor.starts_with("backbone.")) {
            let key = if role.pretrained.is_some() { "pretrained" } else { "backbone_learning_rate_factor" };
            return Err(Error::Setting(format!("{name}.{key} is set, but this network has no backbone of its own")));
        }
    }
    let Some(source) = &role.pretrained else {
        let normalisation = role.normalisation.or(recipe.normalisation).ok_or_else(|| unstated(name))?;
        return Ok(Start { normalisation, pretrained: None });
    };
    let (taken, origin) = read(name, source, &config, num_classes)?;
    let report = &taken.report;
    tracing::info!(
        "{name}: backbone from {source}, SHA-256 {}: {} tensors, names as in {}; {} others left out",
        report.sha256,
        report.matched.len(),
        report.scheme.name(),
        report.outside.len() + report.unexpected.len()
    );
    for note in &report.notes {
        tracing::info!("{name}: {note}");
    }
    let normalisation = match (role.normalisation, taken.normalisation) {
        (Some(stated), Some(theirs)) => agreed(&format!("{name}.normalisation"), stated, source, theirs)?,
        (None, Some(theirs)) => theirs,
        (stated, None) => {
            let normalisation = stated.or(recipe.normalisation).ok_or_else(|| unstated(name))?;
            tracing::warn!("{name}: {source} does not say how inputs are scaled; taken: {}", show(&normalisation));
            normalisation
        }
    };
    tracing::info!("{name}: inputs scaled by {}", show(&normalisation));
    Ok(Start { normalisation, pretrained: Some(origin) })
}

/// Lays the pretrained tensors over the initial ones, where there are any.
///
/// # Errors
/// A source that is gone, does not fit or is another one than the run was started with.
pub(crate) fn lay_over(
    name: &str,
    start: &Start,
    config: &ModelConfig,
    num_classes: usize,
    store: &ParamStore,
) -> Result<()> {
    let Some(expected) = &start.pretrained else { return Ok(()) };
    let (taken, origin) = read(name, &expected.source, config, num_classes)?;
    if origin != *expected {
        return Err(Error::Setting(format!(
            "{name}.pretrained: {} has changed since the run was started: SHA-256 {}, expected {}",
            expected.source, origin.sha256, expected.sha256
        )));
    }
    let mut tensors = store.tensors();
    tensors.extend(taken.tensors);
    Ok(store.apply(&tensors)?)
}

fn read(name: &str, source: &str, config: &ModelConfig, num_classes: usize) -> Result<(Pretrained, Origin)> {
    if !source.starts_with("hub:") && !Path::new(source).exists() {
        return Err(Error::Setting(format!(
            "{name}.pretrained: {source}: no such file or folder; make it with `cargo xtask dsd models import --from FILE \
             --as ARCHITECTURE --to {source}` (docs/recipes.md says where FILE is from) or start from the seed with \
             --set {name}.pretrained=\"\""
        )));
    }
    let taken = weights::load(source, config, num_classes, Part::Backbone)
        .map_err(|error| Error::Setting(format!("{name}.pretrained: {error}")))?;
    let origin =
        Origin { source: source.to_string(), sha256: taken.report.sha256.clone(), tensors: taken.tensors.len() };
    Ok((taken, origin))
}

/// The weights' own normalisation, where what is stated is the same.
///
/// # Errors
/// [`Error::Setting`] naming both.
pub(crate) fn agreed(key: &str, stated: Normalisation, source: &str, theirs: Normalisation) -> Result<Normalisation> {
    let near = |a: &[f32; 3], b: &[f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME);
    if near(&stated.mean, &theirs.mean) && near(&stated.std, &theirs.std) {
        return Ok(theirs);
    }
    Err(Error::Setting(format!(
        "{key} is {}, but the weights {source} were trained with {}; leave {key} out, or take other weights",
        show(&stated),
        show(&theirs)
    )))
}

fn unstated(name: &str) -> Error {
    Error::Setting(format!(
        "nothing says how the inputs of the {name} are scaled; give the recipe a [normalisation], ImageNet's for example: \
         mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]"
    ))
}

fn show(normalisation: &Normalisation) -> String {
    format!("mean {:?} std {:?}", normalisation.mean, normalisation.std)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_normalisation_is_the_weights_or_refused_with_both() {
        let theirs = Normalisation { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] };
        let rounded = Normalisation { mean: [0.498_039; 3], std: [0.501_961; 3] };
        assert_eq!(agreed("teacher.normalisation", rounded, "w", theirs).unwrap(), theirs);
        let other = Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
        let message = agreed("teacher.normalisation", other, "w", theirs).unwrap_err().to_string();
        for part in ["teacher.normalisation", "0.485", "the weights w", "0.498"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
