//! What is timed.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use dsd_kernels::conv2d::{self, Conv2dShape};
use dsd_models::{Mode, ModelConfig, ParamStore, Segmenter, build, variant};
use dsd_ops::{
    Activation, Conv2dOptions, CrossEntropyOptions, PoolOptions, adaptive_avg_pool2d, batch_norm_train, conv2d,
    cross_entropy, max_pool2d, prelu, resize_bilinear,
};
use dsd_random::Stream;
use dsd_similarity as similarity;

use super::Bench;
use crate::objective::{Objective, Progress};
use crate::optimiser::Optimiser;
use crate::recipe;

const CLASSES: usize = 11;

/// Convolution shapes of the networks, as [N,C,H,W], K, kernel, stride, dilation, groups.
const CONVOLUTIONS: [([usize; 4], usize, usize, usize, usize, usize); 12] = [
    ([2, 64, 64, 64], 64, 3, 1, 1, 1),
    ([2, 128, 32, 32], 128, 3, 1, 1, 1),
    ([2, 256, 32, 32], 256, 3, 1, 2, 1),
    ([2, 512, 16, 16], 512, 3, 1, 1, 1),
    ([8, 64, 56, 56], 128, 3, 2, 1, 1),
    ([2, 3, 256, 256], 64, 3, 2, 1, 1),
    ([2, 3, 224, 224], 64, 7, 2, 1, 1),
    ([2, 256, 32, 32], 64, 1, 1, 1, 1),
    ([2, 64, 32, 32], 256, 1, 1, 1, 1),
    ([4, 128, 32, 32], 32, 1, 1, 1, 1),
    ([2, 96, 64, 64], 96, 3, 1, 1, 96),
    ([2, 96, 64, 64], 96, 3, 2, 1, 96),
];

/// Convolution kernels, the three passes of each shape.
pub(super) fn kernels(bench: &mut Bench) -> Result<()> {
    for (input, out_channels, kernel, stride, dilation, groups) in CONVOLUTIONS {
        let [batch, in_channels, in_height, in_width] = input;
        let shape = Conv2dShape {
            batch,
            in_channels,
            in_height,
            in_width,
            out_channels,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [dilation * (kernel / 2); 2],
            extra_padding: [0, 0],
            dilation: [dilation; 2],
            groups,
        };
        let (height, width) = (shape.out_height(), shape.out_width());
        let x = random(input.iter().product(), "x");
        let weight = random(out_channels * in_channels / groups * kernel * kernel, "weight");
        let grad = random(batch * out_channels * height * width, "grad");
        let mut y = vec![0.0; grad.len()];
        let mut grad_x = vec![0.0; x.len()];
        let mut grad_weight = vec![0.0; weight.len()];
        let work = 2.0 * (grad.len() * in_channels / groups * kernel * kernel) as f64;
        let name = format!(
            "{batch},{in_channels},{in_height},{in_width}→{out_channels} {kernel}x{kernel}/{stride} d{dilation} g{groups}"
        );
        let wrap = |error: dsd_kernels::Error| crate::Error::Ops(error.into());
        bench.case(&format!("conv {name} forward"), work, || {
            conv2d::forward(&shape, &x, &weight, None, &mut y).map_err(wrap)
        })?;
        bench.case(&format!("conv {name} grad x"), work, || {
            conv2d::backward_input(&shape, &weight, &grad, &mut grad_x).map_err(wrap)
        })?;
        bench.case(&format!("conv {name} grad w"), work, || {
            conv2d::backward_weight(&shape, &x, &grad, &mut grad_weight).map_err(wrap)
        })?;
    }
    Ok(())
}

/// Operations with their graph, forward and backward.
pub(super) fn ops(bench: &mut Bench) -> Result<()> {
    let x = var(&[4, 64, 64, 64], "x")?;
    let scale = var(&[64], "scale")?;
    let shift = var(&[64], "shift")?;
    let weight = var(&[64, 64, 3, 3], "weight")?;
    let window = PoolOptions { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let convolution = Conv2dOptions { padding: [1, 1], ..Conv2dOptions::default() };
    let mut upstream = Upstream::default();
    bench.case("conv 3x3 4,64,64,64 forward + backward", 0.0, || {
        upstream.backward(&conv2d(x.as_tensor(), weight.as_tensor(), None, convolution)?)
    })?;
    let mut upstream = Upstream::default();
    bench.case("batch norm + relu 4,64,64,64 forward + backward", 0.0, || {
        let y = batch_norm_train(x.as_tensor(), scale.as_tensor(), shift.as_tensor(), None, 1e-5, Activation::Relu)?;
        upstream.backward(&y)
    })?;
    let mut upstream = Upstream::default();
    bench.case("prelu 4,64,64,64 forward + backward", 0.0, || {
        upstream.backward(&prelu(x.as_tensor(), scale.as_tensor())?)
    })?;
    let mut upstream = Upstream::default();
    bench.case("max pool 3x3/2 4,64,64,64 forward + backward", 0.0, || {
        upstream.backward(&max_pool2d(x.as_tensor(), window)?)
    })?;
    let mut upstream = Upstream::default();
    bench.case("adaptive average pool 6x6 4,64,64,64 forward + backward", 0.0, || {
        upstream.backward(&adaptive_avg_pool2d(x.as_tensor(), [6, 6])?)
    })?;
    let logits = var(&[4, CLASSES, 32, 32], "logits")?;
    let mut upstream = Upstream::default();
    bench.case("bilinear 4,11,32,32→256,256 forward + backward", 0.0, || {
        upstream.backward(&resize_bilinear(logits.as_tensor(), [256, 256], true)?)
    })?;
    let full = var(&[4, CLASSES, 256, 256], "full")?;
    let labels = labels(4, 256, 256)?;
    let mut upstream = Upstream::default();
    bench.case("cross-entropy 4,11,256,256 forward + backward", 0.0, || {
        let loss = cross_entropy(
            full.as_tensor(),
            &labels,
            CrossEntropyOptions { ignore_label: dsd_data::IGNORE, class_weights: None },
        )?;
        upstream.backward(&loss)
    })?;
    Ok(())
}

/// Distillation losses at the size of a Cityscapes crop: logits [2,19,64,128], features with 512 channels.
pub(super) fn losses(bench: &mut Bench) -> Result<()> {
    let student_logits = var(&[2, 19, 64, 128], "student")?;
    let teacher_logits = var(&[2, 19, 64, 128], "teacher")?.as_detached_tensor();
    let student: Vec<Var> =
        ["a", "b"].iter().map(|name| var(&[2, 512, 64, 128], name)).collect::<crate::Result<_>>()?;
    let teacher: Vec<Tensor> = student.iter().map(Var::as_detached_tensor).rev().collect();
    let layers: Vec<Tensor> = student.iter().map(|layer| layer.as_tensor().clone()).collect();
    let mut upstream = Upstream::default();
    bench.case("psd, two layers of 512 channels", 0.0, || {
        upstream.backward(&similarity::psd(&layers, &teacher, None, similarity::Psd::paper_reading())?)
    })?;
    let mut upstream = Upstream::default();
    bench.case("csd, 19 classes", 0.0, || {
        let settings = similarity::Csd::paper_reading();
        upstream.backward(&similarity::csd(student_logits.as_tensor(), &teacher_logits, None, settings)?)
    })?;
    let mut upstream = Upstream::default();
    bench.case("pixel kd, 19 classes", 0.0, || {
        let settings = similarity::PixelKd { temperature: 2.0 };
        upstream.backward(&similarity::pixel_kd(student_logits.as_tensor(), &teacher_logits, None, settings)?)
    })?;
    Ok(())
}

/// Whole training steps at batch 4 and 256×256: forward, backward, optimiser.
pub(super) fn step(bench: &mut Bench) -> Result<()> {
    let images = tensor(&[4, 3, 256, 256], "images")?;
    let labels = labels(4, 256, 256)?;
    let teacher = network("pspnet_resnet18")?;
    for name in ["pspnet_resnet18", "pspnet_resnet18_half", "enet"] {
        for distilled in [false, true] {
            let (student, store, mut optimiser) = trainee(name)?;
            let terms = if distilled { distillation(name) } else { Vec::new() };
            let task = recipe::Task {
                aux_weight: 0.4,
                class_weights: recipe::ClassWeights::None,
                terms: vec![recipe::Term::new(1.0, recipe::Loss::CrossEntropy {})],
            };
            let options = recipe::ObjectiveOptions { share_every: 0, ..recipe::ObjectiveOptions::default() };
            let mut objective = Objective::new(&task, options, None, dsd_data::IGNORE, &terms);
            let at = Progress { seed: 1, step: 0, steps: 1 };
            let case = if distilled { format!("{name} 4,3,256,256, distilled") } else { format!("{name} 4,3,256,256") };
            bench.case(&case, 0.0, || {
                let teacher = if distilled { Some(teacher.0.forward(&images, Mode::Eval)?) } else { None };
                let output = student.forward(&images, Mode::Train { seed: 1, step: 0 })?;
                let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
                for term in objective.evaluate(at, &output, teacher.as_ref(), &labels, &[])?.terms {
                    total = (total + (term.loss * term.weight)?)?;
                }
                optimiser.step(&total.backward()?, 1e-6)
            })?;
            drop(store);
        }
    }
    Ok(())
}

/// One image of CamVid's size.
pub(super) fn infer(bench: &mut Bench) -> Result<()> {
    let image = tensor(&[1, 3, 360, 480], "image")?;
    for name in ["pspnet_resnet18", "pspnet_resnet18_half", "enet"] {
        let (model, _store) = network(name)?;
        bench.case(&format!("{name} 1,3,360,480"), 0.0, || {
            model.forward(&image, Mode::Eval)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// PSD on the deepest three layers, CSD and pixel KD.
fn distillation(student: &str) -> Vec<recipe::Term> {
    let names = |names: [&str; 3]| names.map(String::from).to_vec();
    let layers = if student == "enet" { ["stage2", "stage3", "head"] } else { ["stage3", "stage4", "head"] };
    vec![
        recipe::Term::new(
            1000.0,
            recipe::Loss::Psd {
                preset: recipe::Preset::PaperReading,
                student: names(layers),
                teacher: names(["stage3", "stage4", "head"]),
                pairs: None,
                resolution_normalised: true,
            },
        ),
        recipe::Term::new(10.0, recipe::Loss::Csd { preset: recipe::Preset::PaperReading, temperature: None }),
    ]
}

fn config(name: &str) -> crate::Result<ModelConfig> {
    variant(name).ok_or_else(|| dsd_models::Error::unknown_variant(name).into())
}

type Trainee = (Box<dyn Segmenter>, ParamStore, Optimiser);

fn trainee(name: &str) -> crate::Result<Trainee> {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let model = build(&config(name)?, CLASSES, store.builder())?;
    let settings = recipe::Optimiser::Sgd {
        learning_rate: 1e-6,
        momentum: 0.9,
        nesterov: false,
        weight_decay: 1e-4,
        decay_all: true,
        clip_norm: None,
    };
    let optimiser = Optimiser::new(settings, store.parameters());
    Ok((model, store, optimiser))
}

/// A network for evaluation: plain tensors, no graph.
fn network(name: &str) -> crate::Result<(Box<dyn Segmenter>, ParamStore)> {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let config = config(name)?;
    build(&config, CLASSES, store.builder())?;
    Ok((build(&config, CLASSES, store.frozen_builder())?, store))
}

fn random(count: usize, purpose: &str) -> Vec<f32> {
    let mut stream = Stream::new(1, purpose, 0, 0);
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn tensor(dims: &[usize], purpose: &str) -> crate::Result<Tensor> {
    Ok(Tensor::from_vec(random(dims.iter().product(), purpose), dims, &Device::Cpu)?)
}

fn var(dims: &[usize], purpose: &str) -> crate::Result<Var> {
    Ok(Var::from_tensor(&tensor(dims, purpose)?)?)
}

fn labels(count: usize, height: usize, width: usize) -> crate::Result<Tensor> {
    let mut stream = Stream::new(1, "labels", 0, 0);
    let ids = (0..count * height * width).map(|_| stream.below(CLASSES) as u8).collect();
    Ok(Tensor::from_vec(ids, (count, height, width), &Device::Cpu)?)
}

/// A dense random gradient for an output, made in the first run and kept.
#[derive(Default)]
struct Upstream(Option<Tensor>);

impl Upstream {
    /// Backward from the output with this gradient; a scalar gets 1.
    fn backward(&mut self, output: &Tensor) -> crate::Result<()> {
        if output.rank() == 0 {
            return Ok(output.backward().map(drop)?);
        }
        let gradient = match &self.0 {
            Some(gradient) => gradient.clone(),
            None => self.0.insert(tensor(output.dims(), "gradient")?).clone(),
        };
        Ok((output * gradient)?.sum_all()?.backward().map(drop)?)
    }
}
