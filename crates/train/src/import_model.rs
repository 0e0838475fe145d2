//! `dsd models import`: weights of other people's training as a folder that training, evaluation and prediction take.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use dsd_data::OpenOptions;
use dsd_models::backbone::{Architecture, Stem};
use dsd_models::weights::{self, BackboneCard, Imported, Part, Pretrained};
use dsd_models::{ClassInfo, FORMAT_VERSION, ModelCard, ModelConfig, Normalisation};

/// Arguments of `dsd models import`.
#[derive(Args, Debug)]
pub struct ImportArguments {
    /// safetensors, what torch.save writes, the folder of a model, or hub:owner/name@revision[/file].
    #[arg(long, value_name = "SOURCE")]
    from: String,
    /// A network of `dsd models`, a network's settings in JSON, or a backbone: resnet18, resnet34, resnet50, resnet101, mobilenetv2,
    /// mobilenetv3_large, efficientnet_lite0.
    #[arg(long = "as", value_name = "ARCH")]
    architecture: String,
    /// What to take; of a backbone there is nothing else.
    #[arg(long, value_enum, default_value = "everything")]
    part: ImportPart,
    /// Classes of a whole network: their number, streets or a published dataset.
    #[arg(long, value_name = "N|DATASET")]
    classes: Option<String>,
    /// Where the source does not say: mean of R, G and B in 0-1.
    #[arg(long, num_args = 3, value_names = ["R", "G", "B"], requires = "std")]
    mean: Option<Vec<f32>>,
    /// Where the source does not say: deviation of R, G and B in 0-1.
    #[arg(long, num_args = 3, value_names = ["R", "G", "B"], requires = "mean")]
    std: Option<Vec<f32>>,
    /// Channel counts of a backbone relative to its paper.
    #[arg(long, default_value_t = 1.0)]
    width: f64,
    /// Folder for model.safetensors and model.json.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImportPart {
    Everything,
    Backbone,
}

/// Reads, writes the folder, prints the report.
///
/// # Errors
/// A source that does not fit; an input normalisation that nobody states, or that is stated differently.
pub fn run(arguments: &ImportArguments) -> Result<()> {
    let ImportArguments { from, architecture, part, to, .. } = arguments;
    weights::find(from)?;
    let network = match architecture.starts_with('{') {
        true => Some(serde_json::from_str::<ModelConfig>(architecture).context("--as")?),
        false => dsd_models::variant(architecture),
    };
    let backbone = serde_json::from_value::<Architecture>(serde_json::Value::String(architecture.clone())).ok();
    match (network, backbone) {
        (Some(config), _) if *part == ImportPart::Everything => {
            let classes = classes(arguments.classes.as_deref())?;
            let taken = weights::load(from, &config, classes.len(), Part::Everything)?;
            let card = ModelCard {
                format_version: FORMAT_VERSION,
                model: config,
                classes,
                normalisation: normalisation(arguments, &taken)?,
                weights_sha256: String::new(),
                training: serde_json::json!({ "imported": Imported::from(&taken.report) }),
            };
            dsd_models::save(to, &card, &taken.tensors)?;
            say!("{}", taken.report)?;
        }
        (Some(config), _) => import_backbone(arguments, &[config])?,
        (None, Some(backbone)) => import_backbone(arguments, &alone(backbone, arguments.width))?,
        (None, None) => {
            bail!("{}, or the name of a backbone", dsd_models::Error::unknown_variant(architecture))
        }
    }
    say_line!("{}", to.display())?;
    Ok(())
}

/// The networks of which a backbone may be a part; a ResNet has one of two stems.
fn alone(backbone: Architecture, width: f64) -> Vec<ModelConfig> {
    let stems = match backbone {
        Architecture::ResNet18 | Architecture::ResNet34 | Architecture::ResNet50 | Architecture::ResNet101 => {
            vec![Some(Stem::Classic), Some(Stem::Deep)]
        }
        _ => vec![None],
    };
    stems.into_iter().map(|stem| weights::backbone_alone(backbone, width, stem)).collect()
}

fn import_backbone(arguments: &ImportArguments, candidates: &[ModelConfig]) -> Result<()> {
    let mut refused = None;
    for config in candidates {
        match weights::load(&arguments.from, config, 1, Part::Backbone) {
            Ok(taken) => {
                let normalisation = normalisation(arguments, &taken)?;
                let card = BackboneCard::new(config, normalisation, Imported::from(&taken.report))?;
                weights::save_backbone(&arguments.to, &card, &taken.tensors)?;
                say!("{}", taken.report)?;
                return Ok(());
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.context("no form of the backbone to try")?.into())
}

/// As the source states it; the command line speaks where the source is silent, and may not contradict it.
fn normalisation(arguments: &ImportArguments, taken: &Pretrained) -> Result<Normalisation> {
    let given = match (arguments.mean.as_deref(), arguments.std.as_deref()) {
        (Some(mean), Some(std)) => Some(Normalisation { mean: mean.try_into()?, std: std.try_into()? }),
        _ => None,
    };
    if let Some(Normalisation { mean, std }) = given
        && !(mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|std| std.is_finite() && *std > 0.0))
    {
        bail!("--mean and --std have to be finite, --std above 0");
    }
    match (given, taken.normalisation) {
        (Some(given), Some(theirs)) if given != theirs => bail!(
            "--mean {:?} --std {:?}, but these weights were trained with mean {:?}, std {:?}",
            given.mean,
            given.std,
            theirs.mean,
            theirs.std
        ),
        (Some(normalisation), _) | (None, Some(normalisation)) => Ok(normalisation),
        (None, None) => bail!("nothing says how the input of these weights is normalised; give --mean and --std"),
    }
}

fn classes(given: Option<&str>) -> Result<Vec<ClassInfo>> {
    let known = match given {
        None => bail!("--classes is missing: the number of the network's classes, streets or a published dataset"),
        Some(name) if dsd_data::manifest(name).is_ok() => dsd_data::manifest(name)?.classes()?,
        Some("streets") => dsd_data::open("streets", None, "val", &OpenOptions::default())?.classes().clone(),
        Some(number) => {
            let count: u8 = number.parse().with_context(|| {
                format!("--classes {number}: expected 1 to 255, streets or a published dataset (see dsd data)")
            })?;
            if count == 0 {
                bail!("--classes 0: expected 1 to 255");
            }
            return Ok((0..count).map(|id| ClassInfo { name: format!("class {id}"), colour: colour(id) }).collect());
        }
    };
    let named = known.names.into_iter().zip(known.colours);
    Ok(named.map(|(name, colour)| ClassInfo { name, colour }).collect())
}

/// Colours that differ: the bits of the number, three at a time, from the highest bit of each channel down. Source: the
/// colour map of the PASCAL VOC development kit.
fn colour(id: u8) -> [u8; 3] {
    let bit = |value: u8, at: u8| value >> at & 1;
    let mut colour = [0; 3];
    for (step, shift) in [0u8, 3, 6].into_iter().enumerate() {
        for (channel, value) in colour.iter_mut().enumerate() {
            let at = shift + channel as u8;
            if at < 8 {
                *value |= bit(id, at) << (7 - step);
            }
        }
    }
    colour
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_classes_have_distinct_colours() {
        let classes = classes(Some("255")).unwrap();
        let colours: std::collections::BTreeSet<_> = classes.iter().map(|class| class.colour).collect();
        assert_eq!((classes.len(), colours.len()), (255, 255));
        assert_eq!((colour(0), colour(1), colour(2), colour(8)), ([0; 3], [128, 0, 0], [0, 128, 0], [64, 0, 0]));
        for (name, count) in [("camvid", 11), ("cityscapes", 19), ("streets", 11)] {
            assert_eq!(super::classes(Some(name)).unwrap().len(), count, "{name}");
        }
        for wrong in [None, Some("0"), Some("256"), Some("nowhere")] {
            assert!(super::classes(wrong).is_err(), "{wrong:?}");
        }
    }
}
