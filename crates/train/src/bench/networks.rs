//! Whole training steps and inference of networks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use dsd_models::{Mode, ModelConfig, Output, ParamStore, Segmenter, build, variant};
use serde_json::{Value, json};

use super::inputs::{labels, scalar, tensor};
use super::{Bench, Case, memory};
use crate::objective::{Objective, Progress};
use crate::optimiser::Optimiser;
use crate::recipe;

pub(super) const CLASSES: usize = 19;

pub(super) const NETWORKS: [&str; 8] = [
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
pub(super) const STEP: [usize; 2] = [256, 256];
/// CamVid's.
const INFER: [usize; 2] = [360, 480];
const RATE: f64 = 1e-6;
/// Passes in which a teacher with random weights takes the statistics of its batch norms from the images. With those of
/// a new network nothing would be normalised in evaluation mode, and the logits of a deep one reach tens of thousands,
/// where a softmax in f32 is a matter of the last digits.
const SETTLING: u64 = 10;
const AUX_WEIGHT: f64 = 0.4;
const PSD_WEIGHT: f64 = 1000.0;
const CSD_WEIGHT: f64 = 10.0;
/// What both networks of a distillation call the features that PSD compares.
const LAYERS: [&str; 3] = ["stage3", "stage4", "head"];

/// A training step of a network, alone or against a teacher. Nothing is dropped out, so that both sides of a comparison
/// compute the same.
pub(super) struct Step {
    student: Box<dyn Segmenter>,
    store: ParamStore,
    teacher: Option<(Box<dyn Segmenter>, ParamStore)>,
    optimiser: Optimiser,
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    recompute: bool,
}

const AT: Progress = Progress { seed: 1, step: 0, steps: 1 };
const TRAIN: Mode = Mode::Train { seed: AT.seed, step: AT.step };

impl Step {
    /// On random images `[N,3,height,width]`.
    pub(super) fn new(name: &str, teacher: Option<&str>, dims: [usize; 4], recompute: bool) -> crate::Result<Self> {
        let (student, store) = network(name, true)?;
        let optimiser = Optimiser::new(settings(), store.parameters());
        let teacher = teacher.map(|name| network(name, false)).transpose()?;
        let terms = if teacher.is_some() { distillation() } else { Vec::new() };
        let cross_entropy = recipe::Term::new(1.0, recipe::Loss::CrossEntropy {});
        let objective = objective(vec![cross_entropy], &terms);
        let images = tensor(&dims, "images")?;
        let labels = labels(dims[0], [dims[2], dims[3]], CLASSES)?;
        if let Some((teacher, _)) = &teacher {
            for step in 0..SETTLING {
                teacher.forward(&images, Mode::Train { seed: AT.seed, step })?;
            }
        }
        Ok(Self { student, store, teacher, optimiser, objective, images, labels, recompute })
    }

    /// Forward, losses, backward, optimiser; with a teacher also its forward pass. The loss.
    pub(super) fn run(&mut self) -> crate::Result<f64> {
        let teacher = self.taught()?;
        let tape = dsd_ops::Tape::start();
        let forward = || self.student.forward(&self.images, TRAIN);
        let output = if self.recompute { dsd_models::with_recomputed_blocks(forward)? } else { forward()? };
        let total = weighted(&mut self.objective, &output, teacher.as_ref(), &self.labels)?;
        self.optimiser.step(&tape.finish(&total)?, RATE)?;
        scalar(&total)
    }

    fn taught(&self) -> crate::Result<Option<Output>> {
        Ok(self.teacher.as_ref().map(|(teacher, _)| teacher.forward(&self.images, Mode::Eval)).transpose()?)
    }

    /// What PSD and CSD alone compare in a step: both outputs, the student's as variables of their own.
    fn compared(&self) -> crate::Result<Option<(Output, Output)>> {
        let Some(teacher) = self.taught()? else { return Ok(None) };
        let own = |tensor: &Tensor| -> crate::Result<Tensor> { Ok(Var::from_tensor(&tensor.detach())?.into_inner()) };
        let mut student = self.student.forward(&self.images, Mode::Eval)?;
        student.logits = own(&student.logits)?;
        // It would bring a term of its own.
        student.aux_logits = None;
        for feature in &mut student.features {
            feature.tensor = own(&feature.tensor)?;
        }
        Ok(Some((student, teacher)))
    }
}

fn objective(task: Vec<recipe::Term>, terms: &[recipe::Term]) -> Objective {
    let task = recipe::Task { aux_weight: AUX_WEIGHT, class_weights: recipe::ClassWeights::None, terms: task };
    let options = recipe::ObjectiveOptions { share_every: 0, ..recipe::ObjectiveOptions::default() };
    Objective::new(&task, options, None, dsd_data::IGNORE, terms)
}

fn weighted(
    objective: &mut Objective,
    student: &Output,
    teacher: Option<&Output>,
    labels: &Tensor,
) -> crate::Result<Tensor> {
    let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    for term in objective.evaluate(AT, student, teacher, labels, &[])?.terms {
        total = (total + (term.loss * term.weight)?)?;
    }
    Ok(total)
}

/// Whole training steps; after each with a teacher, what PSD and CSD alone take in it.
pub(super) fn step(bench: &mut Bench) -> Result<()> {
    let [height, width] = bench.size.unwrap_or(STEP);
    let dims = [bench.batch, 3, height, width];
    let inputs = BTreeMap::from([
        ("images".to_string(), tensor(&dims, "images")?),
        ("labels".to_string(), labels(bench.batch, [height, width], CLASSES)?),
    ]);
    let inputs = bench.share("inputs", &inputs)?;
    let alone = NETWORKS.iter().map(|name| (*name, None));
    let distilled = DISTILLED.iter().map(|(name, teacher)| (*name, Some(*teacher)));
    for (name, teacher_name) in alone.chain(distilled) {
        let mut case = format!("{name} {}", dims.map(|side| side.to_string()).join(","));
        if let Some(teacher) = teacher_name {
            case = format!("{case}, distilled from {teacher}");
        }
        if bench.recompute {
            case = format!("{case}, recomputed");
        }
        if !bench.wants(&case) {
            continue;
        }
        let resident = memory::resident();
        let mut step = Step::new(name, teacher_name, dims, bench.recompute)?;
        let peer = match &inputs {
            Value::Null => Value::Null,
            inputs => json!({
                "kind": "step", "network": name, "classes": CLASSES, "inputs": inputs,
                "weights": bench.share("student", &step.store.tensors())?,
                "teacher": teacher_name,
                "teacher_weights": match &step.teacher {
                    Some((_, store)) => bench.share("teacher", &store.tensors())?,
                    None => Value::Null,
                },
                "rate": RATE, "aux": AUX_WEIGHT, "psd": PSD_WEIGHT, "csd": CSD_WEIGHT,
            }),
        };
        bench.case(Case { resident, ..Case::new(&case, peer) }, || step.run().map(Some))?;
        if let Some((student, teacher)) = step.compared()? {
            let mut objective = objective(Vec::new(), &distillation());
            let case = format!("{case}: PSD and CSD alone");
            bench.case(Case::new(&case, Value::Null), || {
                let loss = weighted(&mut objective, &student, Some(&teacher), &step.labels)?;
                loss.backward()?;
                scalar(&loss).map(Some)
            })?;
        }
        if bench.profile {
            profile(&case, &mut step)?;
        }
    }
    Ok(())
}

/// Steps that are looked into.
const PROFILED: u32 = 3;

/// Prints what each kind of operation takes of a step.
fn profile(case: &str, step: &mut Step) -> Result<()> {
    let timing = dsd_ops::Profile::start();
    let begun = Instant::now();
    for _ in 0..PROFILED {
        step.run()?;
    }
    let whole = begun.elapsed();
    let mut kinds: BTreeMap<String, [Duration; 2]> = BTreeMap::new();
    for found in timing.timings() {
        let kind = match found.inputs.as_slice() {
            [x, weight, ..] if found.operation.starts_with("conv") => {
                let depthwise = if weight[1] == 1 && x[1] > 1 { "depthwise " } else { "" };
                format!("{} {depthwise}{}x{}", found.operation, weight[2], weight[3])
            }
            _ => found.operation.to_string(),
        };
        let sums = kinds.entry(kind).or_default();
        sums[0] += found.forward;
        sums[1] += found.backward;
    }
    let told: Duration = kinds.values().flatten().sum();
    kinds.insert(
        "the rest: candle's forward passes, losses, optimiser".to_string(),
        [whole.saturating_sub(told), Duration::ZERO],
    );
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, sums)| std::cmp::Reverse(sums[0] + sums[1]));
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(PROFILED);
    say_line!("profile  {case}: {:.1} ms", ms(whole))?;
    for (kind, [forward, backward]) in kinds {
        let share = 100.0 * (forward + backward).as_secs_f64() / whole.as_secs_f64();
        say_line!(
            "         {kind:52} forward {:8.2} ms  backward {:8.2} ms  {share:5.1} %",
            ms(forward),
            ms(backward)
        )?;
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
