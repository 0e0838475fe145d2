//! The distillation losses as one table: what holds for all of them is tested for all of them.

mod bank;
mod extremes;
mod gradients;
mod invariants;
mod reference;
mod refusals;

use candle_core::{DType, Device, Tensor};
use dsd_random::{Stream, name_hash};
use dsd_similarity::{
    AttentionTransfer, ChannelKd, CrossImageKd, DistKd, Ifvd, MemoryContrast, PairwiseKd, PixelKd, PoolWindow,
    PsdReduction, Result, attention_transfer, channel_kd, class_weighted_pixel_kd, cross_image_kd, dist_kd, fitnet,
    ifvd, memory_contrast, pairwise_kd,
};

use super::normal;

const CLASSES: usize = 4;

/// What every loss is given; it takes what it needs.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// Layers; losses of one feature or of logits take the first.
    student: &'a [Tensor],
    teacher: &'a [Tensor],
    /// Of the mask's resolution or any other.
    labels: &'a Tensor,
    valid: Option<&'a Tensor>,
}

/// What a loss does not depend on, in the student's first layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invariance {
    /// A factor for the whole layer.
    Scale,
    /// A number for each position, added to all channels.
    PerPosition,
    /// A number for each channel, added to all positions.
    PerChannel,
    Nothing,
}

struct Loss {
    name: &'static str,
    /// Whether teacher and student must have the same number of channels.
    equal_channels: bool,
    invariance: Invariance,
    run: fn(Inputs<'_>) -> Result<Tensor>,
}

fn unit_rows(name: &str, rows: usize, like: &Tensor) -> Tensor {
    let memory = normal(name, &[rows, like.dim(1).unwrap()], 1.0);
    let norm = memory.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    memory.broadcast_div(&norm).unwrap().to_dtype(like.dtype()).unwrap()
}

/// Labels below `classes`; the number depends on the name alone.
fn labels(name: &str, shape: &[usize; 3], classes: usize) -> Tensor {
    let mut stream = Stream::new(1, "similarity labels", 0, name_hash(name));
    let ids: Vec<u8> = (0..shape.iter().product()).map(|_| stream.below(classes) as u8).collect();
    Tensor::from_vec(ids, shape.as_slice(), &Device::Cpu).unwrap()
}

fn at(x: Inputs<'_>, cfg: AttentionTransfer) -> Result<Tensor> {
    attention_transfer(x.student, x.teacher, x.valid, cfg)
}

fn pairwise(x: Inputs<'_>, window: PoolWindow, average: bool) -> Result<Tensor> {
    pairwise_kd(&x.student[0], &x.teacher[0], x.valid, PairwiseKd { window, average })
}

fn memory(x: Inputs<'_>, cfg: MemoryContrast) -> Result<Tensor> {
    memory_contrast(&x.student[0], &x.teacher[0], &unit_rows("memory", 9, &x.student[0]), x.valid, cfg)
}

/// Every loss, with the settings that change its arithmetic.
fn losses() -> Vec<Loss> {
    use Invariance::{Nothing, PerChannel, PerPosition, Scale};
    let row = |name, equal_channels, invariance, run: fn(Inputs<'_>) -> Result<Tensor>| Loss {
        name,
        equal_channels,
        invariance,
        run,
    };
    vec![
        row("attention_transfer", false, Scale, |x| at(x, AttentionTransfer::published())),
        row("attention_transfer resolution normalised", false, Scale, |x| {
            at(x, AttentionTransfer::resolution_normalised())
        }),
        row("attention_transfer norm, power 1", false, Scale, |x| {
            at(x, AttentionTransfer { reduction: PsdReduction::Norm, power: 1.0, ..AttentionTransfer::published() })
        }),
        row("fitnet", true, Nothing, |x| fitnet(&x.student[0], &x.teacher[0], x.valid)),
        row("pairwise_kd published", false, Scale, |x| pairwise(x, PoolWindow::Share(0.5), false)),
        row("pairwise_kd 2×2", false, Scale, |x| pairwise(x, PoolWindow::Pixels([2, 2]), false)),
        row("pairwise_kd unpooled", false, Scale, |x| pairwise(x, PoolWindow::None, false)),
        row("pairwise_kd fewer places than channels", false, Scale, |x| pairwise(x, PoolWindow::Pixels([4, 9]), false)),
        row("pairwise_kd averages", false, Scale, |x| pairwise(x, PoolWindow::Pixels([2, 3]), true)),
        row("channel_kd published", true, PerChannel, |x| {
            channel_kd(&x.student[0], &x.teacher[0], x.valid, ChannelKd::published())
        }),
        row("channel_kd T=1", true, PerChannel, |x| {
            channel_kd(&x.student[0], &x.teacher[0], x.valid, ChannelKd { temperature: 1.0 })
        }),
        row("class_weighted_pixel_kd", true, PerPosition, |x| {
            let weights: Vec<f64> = (0..x.student[0].dim(1)?).map(|class| 0.3 + 0.7 * class as f64).collect();
            class_weighted_pixel_kd(&x.student[0], &x.teacher[0], x.valid, &weights, PixelKd { temperature: 2.0 })
        }),
        row("ifvd", false, Scale, |x| {
            ifvd(&x.student[0], &x.teacher[0], x.labels, x.valid, Ifvd { num_classes: CLASSES })
        }),
        row("dist_kd published", true, PerPosition, |x| {
            dist_kd(&x.student[0], &x.teacher[0], x.valid, DistKd::published())
        }),
        row("dist_kd T=2", true, PerPosition, |x| {
            let cfg = DistKd { inter: 0.5, intra: 2.0, temperature: 2.0 };
            dist_kd(&x.student[0], &x.teacher[0], x.valid, cfg)
        }),
        row("cross_image_kd", false, Scale, |x| {
            cross_image_kd(&x.student[0], &x.teacher[0], x.valid, CrossImageKd::published())
        }),
        row("cross_image_kd averaged", false, Scale, |x| {
            let cfg = CrossImageKd { temperature: 0.5, average_pool: 2 };
            cross_image_kd(&x.student[0], &x.teacher[0], x.valid, cfg)
        }),
        row("memory_contrast", true, Scale, |x| memory(x, MemoryContrast::published())),
        row("memory_contrast T=2", true, Scale, |x| {
            memory(x, MemoryContrast { contrast_temperature: 0.3, temperature: 2.0 })
        }),
    ]
}

/// Two layers of the teacher, whose first has the student's channels where the loss needs it.
fn teacher_layers(loss: &Loss, name: &str, channels: usize, size: [usize; 2], images: usize) -> Vec<Tensor> {
    let free = if loss.equal_channels { channels } else { channels + 2 };
    super::layers(name, &[[images, free, size[0], size[1]], [images, 3, size[0], size[1]]])
}

fn to(tensors: &[Tensor], dtype: DType) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.to_dtype(dtype).unwrap()).collect()
}
