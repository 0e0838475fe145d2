//! The losses at the size of a Cityscapes crop, forward and backward.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Tensor, Var};
use dsd_ops::{CrossEntropyOptions, cross_entropy};
use dsd_similarity as similarity;
use dsd_similarity::{
    AttentionTransfer, ChannelKd, CrossImageKd, Csd, DistKd, Ifvd, MapSize, PairwiseKd, PixelKd, Psd,
};
use dsd_similarity::{PoolWindow, PsdReduction};
use serde_json::{Value, json};

use super::inputs::{Upstream, labels, tensor, var};
use super::{Bench, Case, memory};

const CLASSES: usize = 19;
const LOGITS: [usize; 4] = [2, CLASSES, 64, 128];
const FEATURES: [usize; 4] = [2, 512, 64, 128];

/// The tensors that the losses take; both layers have 512 channels.
struct Inputs {
    student_logits: Var,
    teacher_logits: Tensor,
    student: Vec<Var>,
    layers: Vec<Tensor>,
    teacher: Vec<Tensor>,
    labels: Tensor,
}

impl Inputs {
    fn new() -> Result<Self> {
        let student: Vec<Var> = ["a", "b"].iter().map(|name| var(&FEATURES, name)).collect::<crate::Result<_>>()?;
        Ok(Self {
            student_logits: var(&LOGITS, "student")?,
            teacher_logits: tensor(&LOGITS, "teacher")?,
            layers: student.iter().map(|layer| layer.as_tensor().clone()).collect(),
            teacher: student.iter().map(Var::as_detached_tensor).rev().collect(),
            student,
            labels: labels(LOGITS[0], [LOGITS[2], LOGITS[3]], CLASSES)?,
        })
    }

    fn shared(&self) -> BTreeMap<String, Tensor> {
        let layers = |side: &str, layers: Vec<Tensor>| {
            let named = layers.into_iter().enumerate();
            named.map(|(index, layer)| (format!("{side}.{index}"), layer)).collect::<Vec<_>>()
        };
        let mut shared: BTreeMap<String, Tensor> =
            layers("student", self.student.iter().map(Var::as_detached_tensor).collect()).into_iter().collect();
        shared.extend(layers("teacher", self.teacher.clone()));
        shared.insert("student.logits".to_string(), self.student_logits.as_detached_tensor());
        shared.insert("teacher.logits".to_string(), self.teacher_logits.clone());
        shared.insert("labels".to_string(), self.labels.clone());
        shared
    }
}

type Loss = (&'static str, fn(&Inputs) -> similarity::Result<Tensor>);

fn pixels() -> CrossEntropyOptions<'static> {
    CrossEntropyOptions { ignore_label: dsd_data::IGNORE, class_weights: None }
}

const LOSSES: [Loss; 17] = [
    ("psd, two layers", |x| similarity::psd(&x.layers, &x.teacher, None, Psd::paper_reading())),
    ("csd", |x| similarity::csd(x.student_logits.as_tensor(), &x.teacher_logits, None, Csd::paper_reading())),
    ("pixel kd", |x| {
        similarity::pixel_kd(x.student_logits.as_tensor(), &x.teacher_logits, None, PixelKd { temperature: 2.0 })
    }),
    ("class-weighted pixel kd", |x| {
        let weights: Vec<f64> = (0..CLASSES).map(|class| 0.3 + 0.1 * class as f64).collect();
        let settings = PixelKd { temperature: 2.0 };
        let student = x.student_logits.as_tensor();
        similarity::class_weighted_pixel_kd(student, &x.teacher_logits, None, &weights, settings)
    }),
    ("channel kd", |x| {
        similarity::channel_kd(x.student_logits.as_tensor(), &x.teacher_logits, None, ChannelKd { temperature: 4.0 })
    }),
    ("dist kd", |x| {
        let settings = DistKd { inter: 1.0, intra: 1.0, temperature: 1.0 };
        similarity::dist_kd(x.student_logits.as_tensor(), &x.teacher_logits, None, settings)
    }),
    ("attention transfer, two layers", |x| {
        let settings = AttentionTransfer {
            power: 2.0,
            reduction: PsdReduction::SquaredMean,
            map_size: MapSize::Coarsest,
            eps: 1e-6,
        };
        similarity::attention_transfer(&x.layers, &x.teacher, None, settings)
    }),
    ("fitnet", |x| similarity::fitnet(&x.layers[0], &x.teacher[0], None)),
    ("pairwise kd, half windows", |x| {
        let settings = PairwiseKd { window: PoolWindow::Share(0.5), average: false };
        similarity::pairwise_kd(&x.layers[0], &x.teacher[0], None, settings)
    }),
    ("pairwise kd, every position", |x| {
        similarity::pairwise_kd(&x.layers[0], &x.teacher[0], None, PairwiseKd::unpooled())
    }),
    ("ifvd", |x| similarity::ifvd(&x.layers[0], &x.teacher[0], &x.labels, None, Ifvd { num_classes: CLASSES })),
    ("cross-image kd, pooled by 4", |x| {
        let settings = CrossImageKd { temperature: 0.1, average_pool: 4 };
        similarity::cross_image_kd(&x.layers[0], &x.teacher[0], None, settings)
    }),
    ("cross-entropy", |x| cross_entropy(x.student_logits.as_tensor(), &x.labels, pixels())),
    ("focal", |x| {
        similarity::focal(x.student_logits.as_tensor(), &x.labels, pixels(), similarity::Focal { gamma: 2.0 })
    }),
    ("dice", |x| {
        let settings = similarity::Dice {
            smoothing: 1.0,
            squared: false,
            classes: similarity::ClassSet::All,
            scope: similarity::Scope::Batch,
        };
        similarity::dice(x.student_logits.as_tensor(), &x.labels, dsd_data::IGNORE, settings)
    }),
    ("lovasz", |x| {
        let settings =
            similarity::LovaszSoftmax { classes: similarity::ClassSet::All, scope: similarity::Scope::Batch };
        similarity::lovasz_softmax(x.student_logits.as_tensor(), &x.labels, dsd_data::IGNORE, settings)
    }),
    ("ohem", |x| {
        let settings = similarity::Ohem { threshold: 0.0, minimum: similarity::Keep::Share(0.25) };
        similarity::ohem_cross_entropy(x.student_logits.as_tensor(), &x.labels, pixels(), settings)
    }),
];

/// The losses of `dsd_similarity` on single tensors: logits [2,19,64,128], features with 512 channels. Memory is what a
/// loss adds to its inputs, gradients included.
pub(super) fn losses(bench: &mut Bench) -> Result<()> {
    let inputs = Inputs::new()?;
    let tensors = bench.share("losses", &inputs.shared())?;
    for (name, loss) in LOSSES {
        let peer = match &tensors {
            Value::Null => Value::Null,
            tensors => json!({ "kind": "loss", "name": name, "tensors": tensors, "classes": CLASSES }),
        };
        let mut upstream = Upstream::default();
        let resident = memory::resident();
        bench.case(Case { resident, ..Case::new(name, peer) }, || upstream.run(|| Ok(loss(&inputs)?)))?;
    }
    Ok(())
}
