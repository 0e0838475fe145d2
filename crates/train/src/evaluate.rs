//! Evaluation on whole images at label size.

use candle_core::{Device, Tensor};
use dsd_data::{Dataset, IGNORE, LabelMap, Normalisation, RgbImage, normalise};
use dsd_metrics::ConfusionMatrix;
use dsd_models::{Mode, Segmenter};
use rayon::prelude::*;

use crate::objective::at_size;
use crate::{Error, Result, interrupt};

/// The confusion matrix of a network over a dataset: whole images, single scale, no flip, logits resized (bilinear,
/// align_corners = true) to the label's size, argmax, ignored pixels left out.
///
/// Images of one size are evaluated `batch_size` at a time; sizes may differ between images. `progress` is called with
/// the number of images that are done.
///
/// # Errors
/// A sample that cannot be read or does not fit, naming it; a stop that was asked for ([`Error::Interrupted`]).
pub fn evaluate(
    model: &dyn Segmenter,
    dataset: &dyn Dataset,
    normalisation: &Normalisation,
    batch_size: usize,
    mut progress: impl FnMut(usize),
) -> Result<ConfusionMatrix> {
    let mut matrix = ConfusionMatrix::new(dataset.classes().names.len())?;
    let mut waiting: Vec<(RgbImage, LabelMap)> = Vec::new();
    for index in 0..dataset.len() {
        if interrupt::requested() {
            return Err(Error::Setting("evaluation stopped by request".to_string()));
        }
        let sample = dataset.sample(index)?;
        let fits = waiting
            .first()
            .is_none_or(|(image, _)| (image.width, image.height) == (sample.image.width, sample.image.height));
        if !fits {
            count(model, &waiting, normalisation, &mut matrix)?;
            waiting.clear();
        }
        waiting.push((sample.image, sample.labels));
        if waiting.len() >= batch_size.max(1) || index + 1 == dataset.len() {
            count(model, &waiting, normalisation, &mut matrix)?;
            waiting.clear();
            progress(index + 1);
        }
    }
    Ok(matrix)
}

fn count(
    model: &dyn Segmenter,
    samples: &[(RgbImage, LabelMap)],
    normalisation: &Normalisation,
    matrix: &mut ConfusionMatrix,
) -> Result<()> {
    let images: Vec<&RgbImage> = samples.iter().map(|(image, _)| image).collect();
    for (predicted, (_, labels)) in predict(model, &images, normalisation)?.iter().zip(samples) {
        matrix.update(&labels.ids, &predicted.ids, IGNORE)?;
    }
    Ok(())
}

/// The class of every pixel of images of one size.
///
/// # Errors
/// [`Error::Setting`] where sizes differ; errors of the network.
pub fn predict(model: &dyn Segmenter, images: &[&RgbImage], normalisation: &Normalisation) -> Result<Vec<LabelMap>> {
    let Some(first) = images.first() else { return Ok(Vec::new()) };
    let (width, height) = (first.width, first.height);
    if images.iter().any(|image| (image.width, image.height) != (width, height)) {
        return Err(Error::Setting("images of different sizes cannot be predicted in one batch".to_string()));
    }
    let pixels: Vec<f32> = images.iter().flat_map(|image| normalise(image, normalisation)).collect();
    let batch = Tensor::from_vec(pixels, (images.len(), 3, height, width), &Device::Cpu)?;
    let logits = model.forward(&batch, Mode::Eval)?.logits;
    let logits = at_size(&logits, [height, width])?;
    let classes = logits.dim(1)?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let plane = height * width;
    Ok(values
        .chunks_exact(classes * plane)
        .map(|scores| LabelMap { width, height, ids: argmax(scores, classes, plane) })
        .collect())
}

/// The first class with the largest score at each pixel: `[C,P]` → `[P]`.
fn argmax(scores: &[f32], classes: usize, plane: usize) -> Vec<u8> {
    const CHUNK: usize = 4096;
    let mut ids = vec![0u8; plane];
    ids.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, ids)| {
        let from = chunk * CHUNK;
        let mut best = scores[from..from + ids.len()].to_vec();
        for class in 1..classes {
            let row = &scores[class * plane + from..][..ids.len()];
            for ((id, best), &score) in ids.iter_mut().zip(&mut best).zip(row) {
                if score > *best {
                    *best = score;
                    *id = class as u8;
                }
            }
        }
    });
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equal_scores() {
        let scores = [1.0, 5.0, 2.0, /**/ 1.0, 6.0, 1.0, /**/ 0.0, 6.0, 3.0];
        assert_eq!(argmax(&scores, 3, 3), [0, 1, 2]);
    }
}
