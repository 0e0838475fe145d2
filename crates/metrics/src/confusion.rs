//! The confusion matrix of a segmentation, and the measures that are functions of it alone.
//!
//! Counts are integers over the whole data set, so the result does not depend on the order of the images, on how they
//! were split into batches or on the number of threads. Averages over images (IoU per image) are a different measure.

use crate::{Error, Result};

/// What a class counts in the mean IoU that occurs neither in the labels nor in the predictions.
///
/// The three give numbers that cannot be compared with each other, so a table should say which one it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AbsentClass {
    /// It is left out of the mean, as Cityscapes' evaluator does. The rule of this project.
    #[default]
    Skip,
    /// It counts as 0 (a mean over all classes with a small constant in the denominator).
    Zero,
    /// It counts as 1 (the default of some libraries); lifts the mean with every class that a data set lacks.
    One,
}

/// Pixel counts by true class and predicted class.
///
/// Fractions are 0 to 1. A measure without any pixel to measure is `None`, never NaN.
///
/// ```
/// use dsd_metrics::{AbsentClass, ConfusionMatrix};
/// let mut matrix = ConfusionMatrix::new(3)?;
/// matrix.update(&[0, 0, 1, 255], &[0, 1, 1, 0], 255)?;
/// assert_eq!(matrix.iou(), [Some(0.5), Some(0.5), None]);
/// assert_eq!(matrix.miou(AbsentClass::Skip), Some(0.5));
/// assert_eq!(matrix.counted_pixels(), 3);
/// # Ok::<(), dsd_metrics::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    num_classes: usize,
    /// `counts[label * num_classes + prediction]`.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// An empty matrix.
    ///
    /// # Errors
    /// NumClasses where the number is 0 or above 256.
    pub fn new(num_classes: usize) -> Result<Self> {
        if !(1..=256).contains(&num_classes) {
            return Err(Error::NumClasses { got: num_classes });
        }
        Ok(Self { num_classes, counts: vec![0; num_classes * num_classes] })
    }

    /// Counts one label map, or a batch of them.
    ///
    /// `labels` and `predictions` are class ids pixel by pixel, in the same order. Pixels whose label is `ignore_label`
    /// are left out of every count, whatever was predicted there.
    ///
    /// # Errors
    /// Length where the slices differ; ClassId, with value and position, where a label is neither a class nor
    /// `ignore_label`, or a prediction is no class (at ignored pixels too: no network with `num_classes` outputs makes
    /// one). After an error the matrix is what it was before.
    pub fn update(&mut self, labels: &[u8], predictions: &[u8], ignore_label: u8) -> Result<()> {
        if labels.len() != predictions.len() {
            return Err(Error::Length { labels: labels.len(), predictions: predictions.len() });
        }
        let num_classes = self.num_classes;
        let is_class = |id: u8| usize::from(id) < num_classes;
        let refuse = |argument, ids: &[u8], position: usize, ignore_label| Error::ClassId {
            argument,
            value: ids.get(position).copied().unwrap_or_default(),
            position,
            num_classes,
            ignore_label,
        };
        if let Some(position) = labels.iter().position(|&label| !is_class(label) && label != ignore_label) {
            return Err(refuse("labels", labels, position, Some(ignore_label)));
        }
        if let Some(position) = predictions.iter().position(|&prediction| !is_class(prediction)) {
            return Err(refuse("predictions", predictions, position, None));
        }
        for (&label, &prediction) in labels.iter().zip(predictions) {
            if label != ignore_label {
                self.counts[usize::from(label) * num_classes + usize::from(prediction)] += 1;
            }
        }
        Ok(())
    }

    /// Adds the counts of another matrix: what another thread, batch or process has counted.
    ///
    /// # Errors
    /// Merge where the numbers of classes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.num_classes != other.num_classes {
            return Err(Error::Merge { expected: self.num_classes, got: other.num_classes });
        }
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        Ok(())
    }

    /// The number of classes.
    #[must_use]
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// All counts, `[label * num_classes + prediction]`.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Pixels of one true class by predicted class; empty where there is no such class.
    #[must_use]
    pub fn row(&self, label: usize) -> &[u64] {
        self.counts.chunks_exact(self.num_classes).nth(label).unwrap_or_default()
    }

    /// Pixels of one predicted class by true class; empty where there is no such class.
    pub fn column(&self, prediction: usize) -> impl Iterator<Item = u64> + '_ {
        self.counts.chunks_exact(self.num_classes).filter_map(move |row| row.get(prediction).copied())
    }

    /// Pixels counted so far, ignored ones left out.
    #[must_use]
    pub fn counted_pixels(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Intersection over union of each class, over all images together; `None` where the class is in neither the labels
    /// nor the predictions. A class that was predicted but never true has 0.
    #[must_use]
    pub fn iou(&self) -> Vec<Option<f64>> {
        self.per_class(|true_positive, labelled, predicted| {
            fraction(true_positive, labelled + predicted - true_positive)
        })
    }

    /// The mean of [`iou`](Self::iou) over the classes, by the given rule for absent ones; `None` where no pixel was
    /// counted.
    #[must_use]
    pub fn miou(&self, absent: AbsentClass) -> Option<f64> {
        if self.counted_pixels() == 0 {
            return None;
        }
        let iou = self.iou();
        match absent {
            AbsentClass::Skip => mean(iou.into_iter().flatten()),
            AbsentClass::Zero => mean(iou.into_iter().map(|value| value.unwrap_or(0.0))),
            AbsentClass::One => mean(iou.into_iter().map(|value| value.unwrap_or(1.0))),
        }
    }

    /// The share of each true class's pixels that was predicted as it (recall); `None` where the class has no pixel.
    #[must_use]
    pub fn accuracy(&self) -> Vec<Option<f64>> {
        self.per_class(|true_positive, labelled, _| fraction(true_positive, labelled))
    }

    /// The mean of [`accuracy`](Self::accuracy) over the classes that occur in the labels; `None` where no pixel was
    /// counted.
    #[must_use]
    pub fn mean_accuracy(&self) -> Option<f64> {
        mean(self.accuracy().into_iter().flatten())
    }

    /// The share of all counted pixels whose prediction is right; `None` where no pixel was counted.
    #[must_use]
    pub fn pixel_accuracy(&self) -> Option<f64> {
        let right = self.counts.iter().step_by(self.num_classes + 1).sum();
        fraction(right, self.counted_pixels())
    }

    /// The mean of [`iou`](Self::iou) weighted by each class's share of the labelled pixels; `None` where no pixel was
    /// counted.
    #[must_use]
    pub fn frequency_weighted_iou(&self) -> Option<f64> {
        let total = self.counted_pixels();
        if total == 0 {
            return None;
        }
        let weighted = self.per_class(|true_positive, labelled, predicted| {
            fraction(true_positive, labelled + predicted - true_positive).map(|iou| labelled as f64 * iou)
        });
        Some(weighted.into_iter().flatten().sum::<f64>() / total as f64)
    }

    /// One value per class from (true positives, pixels labelled so, pixels predicted so).
    fn per_class(&self, value: impl Fn(u64, u64, u64) -> Option<f64>) -> Vec<Option<f64>> {
        (0..self.num_classes)
            .map(|class| {
                let true_positive = self.row(class).get(class).copied().unwrap_or_default();
                value(true_positive, self.row(class).iter().sum(), self.column(class).sum())
            })
            .collect()
    }
}

/// `None` for a share of nothing. Exact up to 2⁵³ pixels.
fn fraction(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// `None` for the mean of nothing.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u64, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / count as f64)
}
