//! From the painted canvas to a photograph: lens blur, vignetting, exposure, colour cast, noise; void borders.

use dsd_random::Stream;

use super::canvas::Canvas;
use super::noise::{Rgb, hash};
use crate::{IGNORE, LabelMap, RgbImage};

/// Lens and sensor of one photograph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Film {
    seed: u64,
    /// Weight of each neighbour in a three-tap blur.
    blur: f32,
    vignette: f32,
    gain: Rgb,
    contrast: f32,
    lift: f32,
    saturation: f32,
    /// Standard deviation of the sensor's noise, in 0–1.
    noise: f32,
    /// Share of class pairs whose border is void.
    void_pairs: u64,
}

impl Film {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let exposure = pick(0.78, 1.3);
        let cast = pick(-0.06, 0.06);
        Self {
            blur: pick(0.04, 0.2),
            vignette: pick(0.0, 0.35),
            gain: [exposure * (1.0 + cast), exposure, exposure * (1.0 - cast)],
            contrast: pick(0.85, 1.2),
            lift: pick(-0.02, 0.05),
            saturation: pick(0.7, 1.15),
            noise: pick(0.006, 0.032),
            void_pairs: 20 + (pick(0.0, 40.0) as u64),
            seed: stream.bits(),
        }
    }

    /// The 8-bit image.
    pub(super) fn develop(&self, canvas: &Canvas) -> RgbImage {
        let (width, height) = (canvas.width, canvas.height);
        let blurred = self.blurred(canvas);
        let mut pixels = vec![0; width * height * 3];
        let (half_w, half_h) = (width as f32 * 0.5, height as f32 * 0.5);
        for y in 0..height {
            let v = (y as f32 + 0.5 - half_h) / half_h;
            for x in 0..width {
                let u = (x as f32 + 0.5 - half_w) / half_w;
                let shade = 1.0 - self.vignette * 0.5 * (u * u + v * v);
                let colour = blurred[y * width + x];
                let grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2];
                let bits = hash(self.seed ^ ((y * width + x) as u64));
                let shot = self.noise / 418.0 * (0.5 + grey).sqrt();
                for (c, byte) in pixels[3 * (y * width + x)..][..3].iter_mut().enumerate() {
                    let value = (grey + (colour[c] - grey) * self.saturation) * self.gain[c] * shade;
                    let value = (value - 0.5) * self.contrast + 0.5 + self.lift;
                    // The sum of two uniform 10-bit numbers, standard deviation 418.
                    let noise = (bits >> (20 * c)) as u32;
                    let sum = (noise & 1023) + ((noise >> 10) & 1023);
                    let value = value + shot * (sum as f32 - 1023.0);
                    *byte = (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
                }
            }
        }
        RgbImage { width, height, pixels }
    }

    /// A separable three-tap blur; the borders repeat.
    fn blurred(&self, canvas: &Canvas) -> Vec<Rgb> {
        let (width, height) = (canvas.width, canvas.height);
        let (side, middle) = (self.blur, 1.0 - 2.0 * self.blur);
        let taps = |a: Rgb, b: Rgb, c: Rgb| -> Rgb { std::array::from_fn(|k| side * (a[k] + c[k]) + middle * b[k]) };
        let source = &canvas.colours;
        let mut across = Vec::with_capacity(source.len());
        for row in source.chunks_exact(width) {
            for x in 0..width {
                across.push(taps(row[x.saturating_sub(1)], row[x], row[(x + 1).min(width - 1)]));
            }
        }
        let mut both = Vec::with_capacity(source.len());
        for y in 0..height {
            let (above, below) = (y.saturating_sub(1) * width, (y + 1).min(height - 1) * width);
            for x in 0..width {
                both.push(taps(across[above + x], across[y * width + x], across[below + x]));
            }
        }
        both
    }

    /// The labels, with void on one side of the borders between some pairs of classes, as annotators leave them.
    pub(super) fn annotate(&self, canvas: &Canvas) -> LabelMap {
        let (width, height) = (canvas.width, canvas.height);
        let mut ids = canvas.labels.clone();
        let is_void = |a: u8, b: u8| {
            let pair = u64::from(a.min(b)) * 256 + u64::from(a.max(b));
            a != b && a != IGNORE && b != IGNORE && hash(self.seed ^ (pair << 40)) % 100 < self.void_pairs
        };
        for y in 0..height {
            for x in 0..width {
                let at = y * width + x;
                let here = canvas.labels[at];
                let right = if x + 1 < width { canvas.labels[at + 1] } else { here };
                let below = if y + 1 < height { canvas.labels[at + width] } else { here };
                if (here != right && is_void(here, right)) || (here != below && is_void(here, below)) {
                    ids[at] = IGNORE;
                }
            }
        }
        LabelMap { width, height, ids }
    }
}
