//! A dataset at another size.

use std::sync::Arc;

use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Rgb};

use crate::{Classes, Dataset, Error, LabelMap, Result, RgbImage, Sample};

/// Another dataset with every sample brought to one size.
///
/// Images are resampled bilinearly, smoothed where they shrink; labels take the id of the nearest pixel, so that no id
/// is made up. Both count pixel centres at half coordinates. Proportions are not kept.
pub struct Resized {
    dataset: Arc<dyn Dataset>,
    height: usize,
    width: usize,
}

impl Resized {
    /// `size` is [height, width], pixels.
    ///
    /// # Errors
    /// Param where a side is 0 or above 65,535.
    pub fn new(dataset: Arc<dyn Dataset>, size: [usize; 2]) -> Result<Self> {
        let fits = |side: &usize| (1..=usize::from(u16::MAX)).contains(side);
        if !size.iter().all(fits) {
            return Err(Error::param("size", format!("expected sides of 1 to {} pixels, got {size:?}", u16::MAX)));
        }
        Ok(Self { dataset, height: size[0], width: size[1] })
    }
}

impl Dataset for Resized {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn classes(&self) -> &Classes {
        self.dataset.classes()
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        let Sample { name, image, labels } = self.dataset.sample(index)?;
        if [image.height, image.width] == [self.height, self.width] {
            return Ok(Sample { name, image, labels });
        }
        Ok(Sample {
            image: resampled(image, self.width, self.height)?,
            labels: nearest(&labels, self.width, self.height)?,
            name,
        })
    }

    fn name(&self, index: usize) -> String {
        self.dataset.name(index)
    }
}

fn resampled(image: RgbImage, width: usize, height: usize) -> Result<RgbImage> {
    let side = |side: usize| {
        u32::try_from(side).map_err(|_| Error::param("size", format!("a side of {side} pixels is too long")))
    };
    let (from, to) = ([side(image.width)?, side(image.height)?], [side(width)?, side(height)?]);
    let Some(buffer) = ImageBuffer::<Rgb<u8>, _>::from_raw(from[0], from[1], image.pixels) else {
        return Err(Error::param("pixels", "fewer than the image has"));
    };
    RgbImage::new(width, height, resize(&buffer, to[0], to[1], FilterType::Triangle).into_raw())
}

fn nearest(labels: &LabelMap, width: usize, height: usize) -> Result<LabelMap> {
    // ⌊(i + ½) · from / to⌋ in integers.
    let place = |index: usize, from: usize, to: usize| (2 * index + 1) * from / (2 * to);
    let mut ids = Vec::with_capacity(width * height);
    for row in 0..height {
        let from = place(row, labels.height, height) * labels.width;
        ids.extend((0..width).map(|column| labels.ids[from + place(column, labels.width, width)]));
    }
    LabelMap::new(width, height, ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn labels_keep_their_ids_and_images_their_colours() {
        let labels = LabelMap::new(4, 2, vec![1, 2, 3, 4, 5, 255, 7, 8]).unwrap();
        assert_eq!(nearest(&labels, 2, 1).unwrap().ids, [255, 8]);
        assert_eq!(nearest(&labels, 4, 2).unwrap(), labels);
        let doubled = nearest(&labels, 8, 4).unwrap();
        assert!((0..4).all(|row| (0..8).all(|x| doubled.ids[row * 8 + x] == labels.ids[row / 2 * 4 + x / 2])));
        let grey = RgbImage::new(4, 2, [10, 20, 30].repeat(8)).unwrap();
        assert_eq!(resampled(grey, 3, 1).unwrap().pixels, [10, 20, 30].repeat(3));
        // Halved, a checkerboard is its mean: shrinking smooths.
        let board = (0..16).flat_map(|pixel| [((pixel + pixel / 4) % 2) as u8 * 200; 3]).collect();
        let halved = resampled(RgbImage::new(4, 4, board).unwrap(), 2, 2).unwrap();
        assert!(halved.pixels.iter().all(|value| value.abs_diff(100) <= 20), "{:?}", halved.pixels);
    }

    #[test]
    fn a_dataset_of_another_size_is_the_same_dataset() {
        let options = OpenOptions { count: 3, size: Some([24, 32]), ..OpenOptions::default() };
        let scenes = open("streets", None, "train", &options).unwrap();
        let small = Resized::new(Arc::clone(&scenes), [9, 16]).unwrap();
        assert_eq!((small.len(), small.classes(), small.name(1)), (3, scenes.classes(), scenes.name(1)));
        let (sample, own) = (scenes.sample(1).unwrap(), small.sample(1).unwrap());
        assert_eq!([own.image.height, own.image.width, own.labels.height, own.labels.width], [9, 16, 9, 16]);
        assert!(own.labels.ids.iter().all(|id| sample.labels.ids.contains(id)));
        assert!(small.sample(3).is_err());
        for size in [[0, 8], [8, 65_536]] {
            assert!(Resized::new(Arc::clone(&scenes), size).is_err());
        }
    }
}
