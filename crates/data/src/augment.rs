//! Random scale, crop, flip and colour jitter, and the normalisation that every input passes.

use dsd_random::Stream;

use crate::{Error, IGNORE, Result, RgbImage, Sample};

/// Channel-wise normalisation: `(value / 255 − mean) / std`, RGB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Mean per channel, R G B, in 0–1.
    pub mean: [f32; 3],
    /// Standard deviation per channel, R G B, in 0–1, > 0.
    pub std: [f32; 3],
}

impl Normalisation {
    /// The values that ImageNet-pretrained networks expect (torchvision).
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    fn check(&self) -> Result<()> {
        let usable = self.mean.iter().all(|value| value.is_finite());
        if usable && self.std.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Ok(());
        }
        Err(Error::param("normalisation", format!("expected a finite mean and a std > 0, got {self:?}")))
    }

    /// Normalised value of every byte, per channel.
    fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|c| std::array::from_fn(|value| (value as f32 / 255.0 - self.mean[c]) / self.std[c]))
    }
}

/// Normalises a whole image for evaluation or prediction: `[3,H,W]`, channel by channel.
#[must_use]
pub fn normalise(image: &RgbImage, normalisation: &Normalisation) -> Vec<f32> {
    let table = normalisation.table();
    (0..3)
        .flat_map(|c| image.pixels.chunks_exact(3).map(move |pixel| (c, pixel)))
        .map(|(c, pixel)| table[c][usize::from(pixel[c])])
        .collect()
}

/// The factors by which an image may be scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleRange {
    /// Smallest factor, > 0.
    pub min: f64,
    /// Largest factor, ≥ `min`.
    pub max: f64,
    /// With a step s, one of min, min + s, … ≤ max, each equally likely; without, uniform between the two.
    pub step: Option<f64>,
}

impl ScaleRange {
    /// No scaling.
    pub const ONE: Self = Self { min: 1.0, max: 1.0, step: None };

    fn check(&self) -> Result<()> {
        let step = self.step.is_none_or(|step| step.is_finite() && step > 0.0);
        if self.min.is_finite() && self.max.is_finite() && self.min > 0.0 && self.max >= self.min && step {
            return Ok(());
        }
        Err(Error::param("scale", format!("expected 0 < min ≤ max and a step > 0 or none, got {self:?}")))
    }

    fn draw(&self, stream: &mut Stream) -> f64 {
        let uniform = stream.uniform();
        match self.step {
            // The small term keeps the last step where (max − min) / step is a whole number but for rounding.
            Some(step) => {
                let count = ((self.max - self.min) / step + 1e-9).floor() + 1.0;
                self.min + step * (uniform * count).floor()
            }
            None => self.min + (self.max - self.min) * uniform,
        }
    }
}

/// Training augmentation: random scale, pad and crop, horizontal flip, colour jitter, normalisation, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    /// Range of the scale factor.
    pub scale: ScaleRange,
    /// [height, width] of the result in pixels.
    pub crop: [usize; 2],
    /// Probability of a horizontal flip, 0–1.
    pub flip: f64,
    /// Brightness factor is uniform in 1 ± this, 0–1.
    pub brightness: f32,
    /// Contrast factor around the crop's mean grey is uniform in 1 ± this, 0–1.
    pub contrast: f32,
    /// Saturation factor around each pixel's grey is uniform in 1 ± this, 0–1.
    pub saturation: f32,
    /// Applied last.
    pub normalisation: Normalisation,
}

/// Weights of R, G, B in luma (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

impl Augmentation {
    /// No randomness but the crop's place: scale 1, no flip, no jitter.
    #[must_use]
    pub fn none(crop: [usize; 2], normalisation: Normalisation) -> Self {
        Self { scale: ScaleRange::ONE, crop, flip: 0.0, brightness: 0.0, contrast: 0.0, saturation: 0.0, normalisation }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Param, naming the setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        self.scale.check()?;
        self.normalisation.check()?;
        if self.crop.contains(&0) {
            return Err(Error::param("crop", format!("expected two sides > 0, got {:?}", self.crop)));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::param("flip", format!("expected a probability, got {}", self.flip)));
        }
        let jitter = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (name, value) in jitter {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::param(name, format!("expected 0 to 1, got {value}")));
            }
        }
        Ok(())
    }

    /// One augmented training example.
    ///
    /// The image is resampled bilinearly and the labels by nearest neighbour, both with pixel centres at half
    /// coordinates and without smoothing when shrinking. Where the scaled image is smaller than the crop it is padded
    /// at the right and the bottom: the image with 0 after normalisation (the mean), the labels with 255. Every call
    /// takes the same number of values from `stream`, so that one setting does not move another's draws.
    ///
    /// # Returns
    /// The image `[3,h,w]`, normalised, and the labels `[h,w]`, with [h, w] = `crop`.
    ///
    /// # Errors
    /// Param where a setting is out of its range.
    pub fn apply(&self, sample: &Sample, stream: &mut Stream) -> Result<(Vec<f32>, Vec<u8>)> {
        self.check()?;
        let [height, width] = self.crop;
        let scale = self.scale.draw(stream);
        let scaled = |side: usize| ((side as f64 * scale).round() as usize).max(1);
        let (down, across) = (stream.uniform(), stream.uniform());
        let flipped = stream.chance(self.flip);
        let mut factor = |strength: f32| 1.0 + strength * (2.0 * stream.uniform() - 1.0) as f32;
        let (brightness, contrast, saturation) =
            (factor(self.brightness), factor(self.contrast), factor(self.saturation));

        let rows = Axis::new(sample.image.height, scaled(sample.image.height), height, down, false);
        let columns = Axis::new(sample.image.width, scaled(sample.image.width), width, across, flipped);
        let mut image = resample(&sample.image, &rows, &columns);
        jitter(&mut image, brightness, contrast, saturation);

        let mut planes = vec![0f32; 3 * height * width];
        let mut labels = vec![IGNORE; height * width];
        for (c, plane) in planes.chunks_exact_mut(height * width).enumerate() {
            let (mean, factor) = (self.normalisation.mean[c], 1.0 / self.normalisation.std[c]);
            for (y, line) in image.chunks_exact(columns.taps.len().max(1)).enumerate() {
                for (target, colour) in plane[y * width + columns.start..].iter_mut().zip(line) {
                    *target = (colour[c] / 255.0 - mean) * factor;
                }
            }
        }
        for (y, row) in rows.taps.iter().enumerate() {
            let source = &sample.labels.ids[row.nearest * sample.labels.width..][..sample.labels.width];
            for (target, column) in labels[y * width + columns.start..].iter_mut().zip(&columns.taps) {
                *target = source[column.nearest];
            }
        }
        Ok((planes, labels))
    }
}

/// Where one output row or column comes from.
struct Tap {
    /// The two source positions to mix; equal at the border.
    first: usize,
    second: usize,
    /// Share of the second.
    share: f32,
    /// The source position that holds this position's centre.
    nearest: usize,
}

/// The part of one axis of the crop that shows the image.
struct Axis {
    /// First output position that shows the image: 0, or the padding's width where the padding was flipped to the left.
    start: usize,
    taps: Vec<Tap>,
}

impl Axis {
    /// `source` pixels are scaled to `scaled`, of which `crop` are shown from a place chosen by `place` in [0, 1).
    fn new(source: usize, scaled: usize, crop: usize, place: f64, flipped: bool) -> Self {
        let room = scaled.saturating_sub(crop);
        let offset = (place * (room + 1) as f64) as usize;
        let visible = crop.min(scaled);
        let ratio = source as f64 / scaled as f64;
        let tap = |position: usize| {
            let centre = ((offset + position) as f64 + 0.5) * ratio;
            let low = (centre - 0.5).max(0.0);
            let first = (low as usize).min(source - 1);
            let second = (first + 1).min(source - 1);
            Tap { first, second, share: (low - first as f64) as f32, nearest: (centre as usize).min(source - 1) }
        };
        let mut taps: Vec<Tap> = (0..visible).map(tap).collect();
        if flipped {
            taps.reverse();
        }
        Self { start: if flipped { crop - visible } else { 0 }, taps }
    }
}

/// Bilinear values in 0–255 at the taps' positions, row by row.
fn resample(image: &RgbImage, rows: &Axis, columns: &Axis) -> Vec<[f32; 3]> {
    let line = |y: usize| &image.pixels[y * image.width * 3..(y + 1) * image.width * 3];
    let mut values = Vec::with_capacity(rows.taps.len() * columns.taps.len());
    for row in &rows.taps {
        let (upper, lower) = (line(row.first), line(row.second));
        for column in &columns.taps {
            let (left, right) = (column.first * 3, column.second * 3);
            values.push(std::array::from_fn(|c| {
                let mix = |line: &[u8]| {
                    let (a, b) = (f32::from(line[left + c]), f32::from(line[right + c]));
                    a + (b - a) * column.share
                };
                let (above, below) = (mix(upper), mix(lower));
                above + (below - above) * row.share
            }));
        }
    }
    values
}

/// Brightness, contrast, saturation, in this order, each clamped to 0–255; a factor of 1 changes nothing.
fn jitter(image: &mut [[f32; 3]], brightness: f32, contrast: f32, saturation: f32) {
    let grey = |pixel: &[f32; 3]| pixel.iter().zip(LUMA).map(|(value, weight)| value * weight).sum::<f32>();
    if brightness != 1.0 {
        image.iter_mut().flatten().for_each(|value| *value = (*value * brightness).min(255.0));
    }
    if contrast != 1.0 && !image.is_empty() {
        let mean = (image.iter().map(|pixel| f64::from(grey(pixel))).sum::<f64>() / image.len() as f64) as f32;
        image.iter_mut().flatten().for_each(|value| *value = (mean + (*value - mean) * contrast).clamp(0.0, 255.0));
    }
    if saturation != 1.0 {
        for pixel in image {
            let level = grey(pixel);
            pixel.iter_mut().for_each(|value| *value = (level + (*value - level) * saturation).clamp(0.0, 255.0));
        }
    }
}
