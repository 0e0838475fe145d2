//! From a recipe's name of a loss to its function, its arguments and their sizes.

use candle_core::Tensor;
use dsd_models::Output;
use dsd_ops::{CrossEntropyOptions, cross_entropy, resize_bilinear};
use dsd_similarity as similarity;

use super::companions::Companions;
use super::{Progress, features, of_teacher};
use crate::recipe::{Loss, Preset};
use crate::{Error, Result, tensors};

/// What the losses of one batch share.
pub(super) struct Batch<'a> {
    student: &'a Output,
    teacher: Option<&'a Output>,
    labels: &'a Tensor,
    pixels: CrossEntropyOptions<'a>,
    /// 1 where a label counts.
    valid: Tensor,
    /// The student's logits at label size.
    at_labels: Tensor,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        student: &'a Output,
        teacher: Option<&'a Output>,
        labels: &'a Tensor,
        class_weights: Option<&'a [f64]>,
        ignore_label: u8,
    ) -> Result<Self> {
        let (_, height, width) = labels.dims3()?;
        Ok(Self {
            student,
            teacher,
            labels,
            pixels: CrossEntropyOptions { ignore_label, class_weights },
            valid: tensors::valid(labels, ignore_label)?,
            at_labels: at_size(&student.logits, [height, width])?,
        })
    }

    /// The value of a loss: `[]` float with a graph to the student.
    pub(super) fn loss(&self, name: &str, loss: &Loss, companions: &Companions, at: Progress) -> Result<Tensor> {
        let (logits, labels, ignored) = (&self.at_labels, self.labels, self.pixels.ignore_label);
        let valid = Some(&self.valid);
        let from = &self.student.logits;
        let (mut to, mut student, mut teacher) = (from, Vec::new(), Vec::new());
        if loss.needs_teacher() {
            let output = of_teacher(name, self.teacher)?;
            to = &output.logits;
            if let Some((own, other)) = loss.layers() {
                student = companions.adapted(name, features("student", self.student, own)?, at)?;
                teacher = features("teacher", output, other)?;
            }
        }
        // The sum of a loss over the pairs of layers.
        let each = |loss: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| {
            sum(student.iter().zip(&teacher).map(|(own, other)| loss(own, other)))
        };
        Ok(match loss {
            Loss::CrossEntropy {} => cross_entropy(logits, labels, self.pixels)?,
            Loss::OhemCrossEntropy(settings) => similarity::ohem_cross_entropy(logits, labels, self.pixels, *settings)?,
            Loss::Focal(settings) => similarity::focal(logits, labels, self.pixels, *settings)?,
            Loss::Dice(settings) => similarity::dice(logits, labels, ignored, *settings)?,
            Loss::LovaszSoftmax(settings) => similarity::lovasz_softmax(logits, labels, ignored, *settings)?,
            Loss::Ssl(settings) => similarity::ssl(logits, labels, ignored, *settings)?,
            Loss::PixelKd { temperature, class_weighted } => {
                let grid = finer(from, to)?;
                let (own, other) = (at_size(from, grid)?, at_size(&to.detach(), grid)?);
                let labels = tensors::labels_at(self.labels, grid)?;
                let valid = tensors::valid(&labels, self.pixels.ignore_label)?;
                let settings = similarity::PixelKd { temperature: *temperature };
                match self.pixels.class_weights {
                    Some(weights) if *class_weighted => {
                        similarity::class_weighted_pixel_kd(&own, &other, Some(&valid), weights, settings)?
                    }
                    _ => similarity::pixel_kd(&own, &other, Some(&valid), settings)?,
                }
            }
            Loss::Psd { preset, pairs, resolution_normalised, .. } => {
                let mut settings = match preset {
                    Preset::PaperReading => similarity::Psd::paper_reading(),
                    Preset::CirkdCompat => similarity::Psd::cirkd_compat(),
                };
                settings.pairs = pairs.unwrap_or(settings.pairs);
                if *resolution_normalised {
                    settings.reduction = similarity::PsdReduction::ResolutionNormalised;
                }
                similarity::psd(&student, &teacher, self.counted(*preset), settings)?
            }
            Loss::Csd { preset, temperature } => {
                let mut settings = match preset {
                    Preset::PaperReading => similarity::Csd::paper_reading(),
                    Preset::CirkdCompat => similarity::Csd::cirkd_compat(),
                };
                settings.temperature = temperature.unwrap_or(settings.temperature);
                similarity::csd(from, to, self.counted(*preset), settings)?
            }
            Loss::AttentionTransfer { power, resolution_normalised, .. } => {
                let settings = if *resolution_normalised {
                    similarity::AttentionTransfer::resolution_normalised()
                } else {
                    similarity::AttentionTransfer::published()
                };
                let settings = similarity::AttentionTransfer { power: *power, ..settings };
                similarity::attention_transfer(&student, &teacher, valid, settings)?
            }
            Loss::Fitnet { .. } => each(&|own, other| Ok(similarity::fitnet(own, other, valid)?))?,
            Loss::ChannelKd { temperature, .. } => {
                let settings = similarity::ChannelKd { temperature: *temperature };
                match loss.layers() {
                    Some(_) => each(&|own, other| Ok(similarity::channel_kd(own, other, valid, settings)?))?,
                    None => similarity::channel_kd(from, to, valid, settings)?,
                }
            }
            Loss::PairwiseKd { window, average, .. } => {
                let settings = similarity::PairwiseKd { window: *window, average: *average };
                each(&|own, other| Ok(similarity::pairwise_kd(own, other, valid, settings)?))?
            }
            Loss::Ifvd { .. } => {
                let settings = similarity::Ifvd { num_classes: from.dim(1)? };
                each(&|own, other| Ok(similarity::ifvd(own, other, self.labels, valid, settings)?))?
            }
            Loss::DistKd(settings) => similarity::dist_kd(from, to, valid, *settings)?,
            Loss::CrossImageKd { temperature, average_pool, .. } => {
                let settings = similarity::CrossImageKd { temperature: *temperature, average_pool: *average_pool };
                each(&|own, other| Ok(similarity::cross_image_kd(own, other, valid, settings)?))?
            }
            Loss::MemoryContrast(settings) => {
                let cfg = similarity::MemoryContrast {
                    contrast_temperature: settings.contrast_temperature,
                    temperature: settings.temperature,
                };
                let drawn = companions.drawn(name);
                let terms = student.iter().zip(&teacher).zip(drawn).flat_map(|((own, other), [pixels, regions])| {
                    [pixels, regions].map(|memory| Ok(similarity::memory_contrast(own, other, memory, valid, cfg)?))
                });
                sum(terms)?
            }
            Loss::Adversarial(_) => {
                let logits = at_size(from, size(to)?)?;
                let seen = similarity::critic_input(&logits, valid)?;
                similarity::adversarial_student(&companions.criticised(name, &seen, at)?)?
            }
            Loss::SslDistillation(settings) => similarity::ssl_distillation(from, to, valid, *settings)?,
        })
    }

    /// The mask of counted pixels; CIRKD's code knows none in its similarity terms.
    fn counted(&self, preset: Preset) -> Option<&Tensor> {
        match preset {
            Preset::PaperReading => Some(&self.valid),
            Preset::CirkdCompat => None,
        }
    }
}

/// The sum of at least one loss.
fn sum(losses: impl Iterator<Item = Result<Tensor>>) -> Result<Tensor> {
    let add = |sum: Result<Tensor>, loss: Result<Tensor>| Ok((sum? + loss?)?);
    losses.reduce(add).unwrap_or_else(|| Err(Error::Setting("a term of the objective names no layers".to_string())))
}

/// Logits at another size; untouched where they have it.
pub(crate) fn at_size(logits: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
    let (_, _, from_height, from_width) = logits.dims4()?;
    if (from_height, from_width) == (height, width) {
        return Ok(logits.clone());
    }
    Ok(resize_bilinear(logits, [height, width], true)?)
}

/// Height and width.
pub(super) fn size(logits: &Tensor) -> Result<[usize; 2]> {
    let (_, _, height, width) = logits.dims4()?;
    Ok([height, width])
}

fn finer(one: &Tensor, other: &Tensor) -> Result<[usize; 2]> {
    let (one, other) = (size(one)?, size(other)?);
    Ok([one[0].max(other[0]), one[1].max(other[1])])
}
