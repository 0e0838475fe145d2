//! The splits of a recipe's dataset, and what training needs to know of them.

use std::sync::Arc;

use dsd_data::{Dataset, IGNORE, OpenOptions};

use crate::recipe::{ClassWeights, Data};
use crate::{Error, Result};

/// Opens one split of a recipe's dataset.
///
/// # Errors
/// The data crate's, naming what is missing.
pub fn open(data: &Data, split: &str, seed: u64, count: Option<usize>) -> Result<Arc<dyn Dataset>> {
    let mut options = OpenOptions { seed, size: data.size, ..OpenOptions::default() };
    if let Some(count) = count {
        options.count = count;
    }
    let dataset = dsd_data::open(&data.dataset, data.root.as_deref(), split, &options)?;
    if dataset.is_empty() {
        return Err(Error::Setting(format!("the {split} split of {} has no images", data.dataset)));
    }
    Ok(dataset)
}

/// The weights of the classes, from the labels of the training split.
pub(crate) fn class_weights(rule: ClassWeights, dataset: &dyn Dataset) -> Result<Option<Vec<f64>>> {
    if rule == ClassWeights::None {
        return Ok(None);
    }
    let count = dataset.classes().names.len();
    // Pixels of the class, and counted pixels of the images that show it.
    let (mut pixels, mut shown) = (vec![0u64; count], vec![0u64; count]);
    for index in 0..dataset.len() {
        let mut here = vec![0u64; count];
        for &id in dataset.sample(index)?.labels.ids.iter().filter(|&&id| id != IGNORE) {
            if let Some(slot) = here.get_mut(usize::from(id)) {
                *slot += 1;
            }
        }
        let all: u64 = here.iter().sum();
        for class in 0..count {
            pixels[class] += here[class];
            shown[class] += if here[class] > 0 { all } else { 0 };
        }
    }
    Ok(Some(balance(rule, &pixels, &shown)))
}

fn balance(rule: ClassWeights, pixels: &[u64], shown: &[u64]) -> Vec<f64> {
    let total = pixels.iter().sum::<u64>().max(1) as f64;
    match rule {
        ClassWeights::None => vec![1.0; pixels.len()],
        ClassWeights::Enet => pixels.iter().map(|&count| 1.0 / (1.02 + count as f64 / total).ln()).collect(),
        ClassWeights::MedianFrequency => {
            let frequency = |class: usize| pixels[class] as f64 / shown[class].max(1) as f64;
            let mut present: Vec<f64> = (0..pixels.len()).filter(|&class| pixels[class] > 0).map(frequency).collect();
            present.sort_by(f64::total_cmp);
            let median = match present.len() {
                0 => 1.0,
                n if n % 2 == 1 => present[n / 2],
                n => 0.5 * (present[n / 2 - 1] + present[n / 2]),
            };
            (0..pixels.len()).map(|class| if pixels[class] > 0 { median / frequency(class) } else { 1.0 }).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_frequency_and_enet_weights_are_their_formulas() {
        // Class 0: 60 of 200 pixels in two images; class 1: 40 of the 100 in one; class 2 never.
        let weights = balance(ClassWeights::MedianFrequency, &[60, 40, 0], &[200, 100, 0]);
        let expected = [0.35 / 0.3, 0.35 / 0.4, 1.0];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
        let weights = balance(ClassWeights::Enet, &[60, 40, 0], &[200, 100, 0]);
        let expected = [1.0 / 1.62f64.ln(), 1.0 / 1.42f64.ln(), 1.0 / 1.02f64.ln()];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
    }
}
