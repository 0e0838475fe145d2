//! Weights of other people's training: read, recognised by the names of their tensors, renamed to ours, compared with
//! the network tensor by tensor.
//!
//! A source is a file (safetensors, or what `torch.save` writes), the folder of a saved or imported model, or
//! `hub:owner/name@revision`. Nothing in a source is executed: of a pickle only the structure is read. What a scheme of
//! names says about the input (mean, deviation, order of the colours) travels with the weights.
//!
//! ```no_run
//! use dsd_models::weights::{Part, load};
//! # fn main() -> dsd_models::Result<()> {
//! let config = dsd_models::variant("pspnet_resnet18").ok_or_else(|| dsd_models::Error::unknown_variant("pspnet_resnet18"))?;
//! let pretrained = load("resnet18.pth", &config, 19, Part::Backbone)?;
//! println!("{}", pretrained.report);
//! # Ok(())
//! # }
//! ```

mod checkpoint;
#[cfg(feature = "hub")]
mod hub;
mod imported;
mod pickle;
mod report;
mod scheme;
mod source;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;
mod torch;
mod zip;

use std::collections::BTreeMap;

use candle_core::Tensor;

pub use imported::{BackboneCard, Imported, backbone_alone, save_backbone};
pub use report::{Report, WrongShape};
pub use scheme::Scheme;

use crate::{Error, ModelConfig, Normalisation, Result, parameter_shapes};
use checkpoint::Checkpoint;
use scheme::Place;

/// Weights that fit a network.
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// By the network's own full names (`backbone.conv1.weight`): all tensors of the part that was asked for, f32, on
    /// the CPU, each in the shape that the network has.
    pub tensors: BTreeMap<String, Tensor>,
    /// How the input has to be normalised; absent where neither the source nor its scheme of names says.
    pub normalisation: Option<Normalisation>,
    /// What was found.
    pub report: Report,
}

/// Which tensors of a network are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Everything,
    /// Those below `backbone.`.
    Backbone,
    /// All but those whose shape follows from the number of classes: for weights of a network with other classes.
    AllButClassifiers,
}

/// Verifies that there is a file to read, before anything else is asked for; fetches it where the source is a place on the
/// hub.
///
/// # Errors
/// [`Error::Io`] without such a file; those of the hub.
pub fn find(source: &str) -> Result<()> {
    source::find(source).map(drop)
}

/// Reads weights for a network: all tensors of the part that is asked for, or an error.
///
/// `source` is a file, the folder of a saved or imported model, or `hub:owner/name@revision[/file]`.
///
/// # Errors
/// [`Error::Io`] for a source that cannot be read, [`Error::Source`] for one that is damaged, of an unknown format or
/// scheme, or in which a tensor of the part is missing or has another shape; with [`Part::Everything`] and
/// [`Part::AllButClassifiers`] also where it has tensors that the network lacks.
pub fn load(source: &str, config: &ModelConfig, num_classes: usize, part: Part) -> Result<Pretrained> {
    let opened = source::open(source)?;
    let checkpoint = Checkpoint::parse(&opened.origin, opened.bytes)?;
    let wanted = Wanted::new(config, num_classes, part)?;
    let scheme = scheme::recognise(&checkpoint, &wanted.all)
        .ok_or_else(|| Error::source(&opened.origin, unknown_scheme(&checkpoint)))?;
    let (sources, mut report) = compare(&checkpoint, scheme, &wanted);
    report.source = opened.origin.clone();
    report.sha256 = opened.sha256;
    report.notes = checkpoint.notes.clone();
    if let Some(message) = report.refusal() {
        return Err(Error::source(&opened.origin, message));
    }
    let mut tensors = BTreeMap::new();
    for (ours, theirs) in sources {
        tensors.insert(ours, checkpoint.tensor(&theirs)?);
    }
    scheme.adjust(&mut tensors, &checkpoint, &mut report.notes)?;
    let normalisation = opened.normalisation.or_else(|| scheme.normalisation());
    Ok(Pretrained { tensors, normalisation, report })
}

/// The tensors of a network, and those of them that are asked for.
struct Wanted {
    all: BTreeMap<String, Vec<usize>>,
    part: Part,
    by_classes: Vec<String>,
}

impl Wanted {
    fn new(config: &ModelConfig, num_classes: usize, part: Part) -> Result<Self> {
        let all = parameter_shapes(config, num_classes)?;
        let other = if num_classes < 255 { num_classes + 1 } else { num_classes - 1 };
        let by_classes =
            parameter_shapes(config, other)?.into_iter().filter(|(name, shape)| all.get(name) != Some(shape));
        let by_classes = by_classes.map(|(name, _)| name).collect();
        let wanted = Self { all, part, by_classes };
        if wanted.names().next().is_none() {
            return Err(Error::config("part", "everything: the network has no backbone of its own name", "backbone"));
        }
        Ok(wanted)
    }

    fn contains(&self, name: &str) -> bool {
        match self.part {
            Part::Everything => true,
            Part::Backbone => name.starts_with("backbone."),
            Part::AllButClassifiers => self.by_classes.iter().all(|other| other != name),
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys().filter(|name| self.contains(name))
    }
}

/// Below this are the tensors of an auxiliary head.
const AUX: &str = "aux.";

/// Our names with theirs where both fit, and the report of all others.
fn compare(checkpoint: &Checkpoint, scheme: Scheme, wanted: &Wanted) -> (BTreeMap<String, String>, Report) {
    let mut report = Report::new(scheme, wanted.part);
    let mut sources = BTreeMap::new();
    let has_aux = wanted.all.keys().any(|name| name.starts_with(AUX));
    for (theirs, shape) in checkpoint.tensors() {
        match scheme.place(theirs) {
            Place::Counter => report.ignored.push(theirs.to_string()),
            Place::Elsewhere => report.outside.push(theirs.to_string()),
            Place::PartOf(ours) if wanted.all.contains_key(&ours) && wanted.contains(&ours) => {
                report.matched.push((ours, theirs.to_string()));
            }
            Place::PartOf(_) => report.outside.push(theirs.to_string()),
            Place::Unknown => report.unexpected.push(theirs.to_string()),
            Place::Ours(ours) => match wanted.all.get(&ours) {
                // A head that helps training alone may be left behind.
                None if ours.starts_with(AUX) && !has_aux => report.outside.push(theirs.to_string()),
                None => report.unexpected.push(theirs.to_string()),
                Some(_) if !wanted.contains(&ours) => report.outside.push(theirs.to_string()),
                Some(expected) if expected != shape => report.wrong_shape.push(WrongShape {
                    name: ours,
                    theirs: theirs.to_string(),
                    expected: expected.clone(),
                    got: shape.to_vec(),
                }),
                Some(_) => {
                    report.matched.push((ours.clone(), theirs.to_string()));
                    sources.insert(ours, theirs.to_string());
                }
            },
        }
    }
    let wrong: Vec<&str> = report.wrong_shape.iter().map(|wrong| wrong.name.as_str()).collect();
    let missing = wanted.names().filter(|name| !sources.contains_key(*name) && !wrong.contains(&name.as_str()));
    report.missing = missing.cloned().collect();
    (sources, report)
}

fn unknown_scheme(checkpoint: &Checkpoint) -> String {
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).take(4).collect();
    let count = checkpoint.tensors().count();
    if count == 0 {
        return "there are no tensors in it".to_string();
    }
    format!(
        "no tensor of this network under any known scheme of names ({}); it has {count} tensors, the first are {}",
        Scheme::ALL.map(Scheme::name).join(", "),
        names.join(", ")
    )
}
