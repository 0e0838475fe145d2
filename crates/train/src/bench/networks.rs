//! Whole training steps and inference of networks.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use dsd_models::{Mode, ModelConfig, ParamStore, Segmenter, build, variant};
use serde_json::{Value, json};

use super::cases::{labels, scalar, tensor};
use super::{Bench, Case, memory};
use crate::objective::{Objective, Progress};
use crate::optimiser::Optimiser;
use crate::recipe;

const CLASSES: usize = 19;

const NETWORKS: [&str; 8] = [
    "pspnet_resnet18",
    "pspnet_resnet18_half",
    "pspnet_resnet50",
    "pspnet_mobilenetv2",
    "pspnet_efficientnet_lite0",
    "enet",
    "espnet",
    "lraspp_mobilenetv3_large",
];

/// Student and teacher of the distillation steps.
const DISTILLED: [(&str, &str); 3] = [
    ("pspnet_resnet18", "pspnet_resnet50"),
    ("pspnet_resnet18", "pspnet_resnet101"),
    ("pspnet_resnet18_half", "pspnet_resnet18"),
];

/// Height and width of the images of a training step.
const STEP: [usize; 2] = [256, 256];
/// CamVid's.
const INFER: [usize; 2] = [360, 480];
const RATE: f64 = 1e-6;
const AUX_WEIGHT: f64 = 0.4;
const PSD_WEIGHT: f64 = 1000.0;
const CSD_WEIGHT: f64 = 10.0;
/// What both networks of a distillation call the features that PSD compares.
const LAYERS: [&str; 3] = ["stage3", "stage4", "head"];

/// Whole training steps: forward, losses, backward, optimiser; with a teacher also its forward pass, PSD and CSD.
///
/// Nothing is dropped out, so that both sides of a comparison compute the same.
pub(super) fn step(bench: &mut Bench) -> Result<()> {
    let [height, width] = bench.size.unwrap_or(STEP);
    let dims = [bench.batch, 3, height, width];
    let images = tensor(&dims, "images")?;
    let labels = labels(bench.batch, [height, width], CLASSES)?;
    let inputs = BTreeMap::from([("images".to_string(), images.clone()), ("labels".to_string(), labels.clone())]);
    let inputs = bench.share("inputs", &inputs)?;
    let alone = NETWORKS.iter().map(|name| (*name, None));
    let distilled = DISTILLED.iter().map(|(name, teacher)| (*name, Some(*teacher)));
    for (name, teacher_name) in alone.chain(distilled) {
        let shape = dims.map(|side| side.to_string()).join(",");
        let case = match teacher_name {
            Some(teacher) => format!("{name} {shape}, distilled from {teacher}"),
            None => format!("{name} {shape}"),
        };
        if !bench.wants(&case) {
            continue;
        }
        let resident = memory::resident();
        let (student, store) = network(name, true)?;
        let mut optimiser = Optimiser::new(settings(), store.parameters());
        let teacher = teacher_name.map(|name| network(name, false)).transpose()?;
        let peer = match &inputs {
            Value::Null => Value::Null,
            inputs => json!({
                "kind": "step", "network": name, "classes": CLASSES, "inputs": inputs,
                "weights": bench.share("student", &store.tensors())?,
                "teacher": teacher_name,
                "teacher_weights": match &teacher {
                    Some((_, store)) => bench.share("teacher", &store.tensors())?,
                    None => Value::Null,
                },
                "rate": RATE, "aux": AUX_WEIGHT, "psd": PSD_WEIGHT, "csd": CSD_WEIGHT,
            }),
        };
        let terms = if teacher.is_some() { distillation() } else { Vec::new() };
        let task = recipe::Task {
            aux_weight: AUX_WEIGHT,
            class_weights: recipe::ClassWeights::None,
            terms: vec![recipe::Term::new(1.0, recipe::Loss::CrossEntropy {})],
        };
        let options = recipe::ObjectiveOptions { share_every: 0, ..recipe::ObjectiveOptions::default() };
        let mut objective = Objective::new(&task, options, None, dsd_data::IGNORE, &terms);
        let at = Progress { seed: 1, step: 0, steps: 1 };
        bench.case(Case { resident, ..Case::new(&case, peer) }, || {
            let teacher = teacher.as_ref().map(|(teacher, _)| teacher.forward(&images, Mode::Eval)).transpose()?;
            let tape = dsd_ops::Tape::start();
            let output = student.forward(&images, Mode::Train { seed: 1, step: 0 })?;
            let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            for term in objective.evaluate(at, &output, teacher.as_ref(), &labels, &[])?.terms {
                total = (total + (term.loss * term.weight)?)?;
            }
            optimiser.step(&tape.finish(&total)?, RATE)?;
            Ok(Some(scalar(&total)?))
        })?;
    }
    Ok(())
}

/// The forward pass of one image of CamVid's size.
pub(super) fn infer(bench: &mut Bench) -> Result<()> {
    let [height, width] = bench.size.unwrap_or(INFER);
    let image = tensor(&[1, 3, height, width], "image")?;
    let inputs = bench.share("image", &BTreeMap::from([("images".to_string(), image.clone())]))?;
    for name in NETWORKS {
        let case = format!("{name} 1,3,{height},{width}");
        if !bench.wants(&case) {
            continue;
        }
        let (model, store) = network(name, false)?;
        let peer = match &inputs {
            Value::Null => Value::Null,
            inputs => json!({
                "kind": "infer", "network": name, "classes": CLASSES, "inputs": inputs,
                "weights": bench.share("weights", &store.tensors())?,
            }),
        };
        // The value that has to agree is taken once: of a timed run it would be a part.
        let logits = model.forward(&image, Mode::Eval)?.logits;
        let mut value = Some(scalar(&logits.abs()?.mean_all()?)?);
        bench.case(Case::new(&case, peer), || {
            model.forward(&image, Mode::Eval)?;
            Ok(value.take())
        })?;
    }
    Ok(())
}

/// PSD and CSD with the weights of their paper.
fn distillation() -> Vec<recipe::Term> {
    let names = || LAYERS.map(String::from).to_vec();
    vec![
        recipe::Term::new(
            PSD_WEIGHT,
            recipe::Loss::Psd {
                preset: recipe::Preset::PaperReading,
                student: names(),
                teacher: names(),
                pairs: None,
                resolution_normalised: true,
            },
        ),
        recipe::Term::new(CSD_WEIGHT, recipe::Loss::Csd { preset: recipe::Preset::PaperReading, temperature: None }),
    ]
}

fn settings() -> recipe::Optimiser {
    recipe::Optimiser::Sgd {
        learning_rate: RATE,
        momentum: 0.9,
        nesterov: false,
        weight_decay: 1e-4,
        decay_all: true,
        clip_norm: None,
    }
}

/// A network without dropout: on parameters with a graph, or for evaluation on plain tensors.
fn network(name: &str, trained: bool) -> crate::Result<(Box<dyn Segmenter>, ParamStore)> {
    let mut config = variant(name).ok_or_else(|| dsd_models::Error::unknown_variant(name))?;
    if let Some(settings) = config.encoder_decoder_mut() {
        settings.dropout = 0.0;
    }
    if let ModelConfig::Enet(settings) = &mut config {
        (settings.early_dropout, settings.dropout) = (0.0, 0.0);
    }
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let network = build(&config, CLASSES, store.builder())?;
    if trained {
        return Ok((network, store));
    }
    Ok((build(&config, CLASSES, store.frozen_builder())?, store))
}
