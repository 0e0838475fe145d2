//! Multi-class soft Dice: one minus the overlap of each class's probabilities with its labels.
//!
//! D_c = (2 Σ p_c·y_c + s) / (Σ p_c^k + Σ y_c + s),  k = 1 or 2;   L = mean over classes of 1 − D_c
//!
//! Σ runs over the counted pixels of the scope, y is 1 at the labelled class, p = softmax(z).
//! Sources: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, §3 (k = 2); Sudre et al., "Generalised Dice overlap as a deep
//! learning loss function for highly unbalanced segmentations", DLMIA 2017, eq. 1 (k = 1).
//! Derivation of the gradient: docs/losses/dice.md.

use candle_core::{Tensor, WithDType};
use dsd_ops::{check, softmax_channels};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::node::{Slope, by_element, node, through_softmax, with_values};
use super::{ClassSet, Scope};
use crate::Result;

const OP: &str = "dice";

/// Settings of [`dice`]. No `Default`: the recipe owns the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dice {
    /// s, in pixels, finite, ≥ 0. Added above and below, so a class of few pixels is taken for better than it is;
    /// the greater the images, the less it does. 0 where the value must not depend on the resolution.
    pub smoothing: f64,
    /// Whether the probabilities below are squared, as V-Net has it.
    pub squared: bool,
    /// The classes of the mean.
    pub classes: ClassSet,
    /// What Σ runs over.
    pub scope: Scope,
}

/// Multi-class soft Dice loss.
///
/// # Shapes
/// logits: `[N,C,H,W]` float. labels: `[N,H,W]` u8, class ids below C or `ignore_label`.
/// # Returns
/// `[]` float, dimensionless, 0 to 1. No pixel that counts: 0, with zero gradient.
/// # Gradient
/// Reaches `logits`.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32; sums in f64. A class whose sums are all 0 (absent, probability 0 everywhere,
/// s = 0) has D = 1.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{ClassSet, Dice, Scope, dice};
/// // Two classes, two pixels, even odds: D = 2 · ½ / (1 + 1) for each class.
/// let logits = Tensor::zeros((1, 2, 1, 2), candle_core::DType::F64, &Device::Cpu)?;
/// let labels = Tensor::new(&[[[0u8, 1]]], &Device::Cpu)?;
/// let cfg = Dice { smoothing: 0.0, squared: false, classes: ClassSet::Present, scope: Scope::Batch };
/// let loss = dice(&logits, &labels, 255, cfg)?.to_scalar::<f64>()?;
/// assert!((loss - 0.5).abs() < 1e-15);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn dice(logits: &Tensor, labels: &Tensor, ignore_label: u8, cfg: Dice) -> Result<Tensor> {
    let labels = Labels::read(OP, logits, labels, ignore_label)?;
    if !(cfg.smoothing.is_finite() && cfg.smoothing >= 0.0) {
        return Err(check::param(OP, "smoothing", "a finite number of at least 0", cfg.smoothing));
    }
    by_element!(logits, typed(logits, labels, cfg))
}

fn typed<T: WithDType>(logits: &Tensor, labels: Labels, cfg: Dice) -> Result<Tensor> {
    let power = |p: f64| if cfg.squared { p * p } else { p };
    let (classes, positions) = (labels.classes, labels.positions());
    let probs = softmax_channels(&logits.detach())?;
    // Σ p·y and Σ p^k of each plane.
    let sums: Vec<(f64, f64)> = with_values(&probs, |probs: &[T]| {
        let of_plane = |(plane, probs): (usize, &[T])| {
            let (mut overlap, mut mass) = (0.0, 0.0);
            for (&p, &id) in probs.iter().zip(labels.image(plane / classes)) {
                let p = if id == labels.ignored { 0.0 } else { p.to_f64() };
                mass += power(p);
                overlap += if usize::from(id) == plane % classes { p } else { 0.0 };
            }
            (overlap, mass)
        };
        probs.par_chunks(positions).enumerate().map(of_plane).collect()
    })?;

    let histogram = labels.histogram();
    let regions: Vec<Vec<usize>> = match cfg.scope {
        Scope::Batch => vec![(0..labels.batch).collect()],
        Scope::Image => (0..labels.batch).map(|image| vec![image]).collect(),
    };
    let counts = |region: &&Vec<usize>| region.iter().any(|&image| histogram[image].iter().any(|&pixels| pixels > 0));
    let regions: Vec<&Vec<usize>> = regions.iter().filter(counts).collect();

    let (mut value, mut planes) =
        (0.0, vec![Plane { class: 0, on_label: T::zero(), everywhere: T::zero() }; sums.len()]);
    for (plane, slot) in planes.iter_mut().enumerate() {
        slot.class = plane % classes;
    }
    for images in &regions {
        let pixels = |class: usize| images.iter().map(|&image| histogram[image][class]).sum::<usize>() as f64;
        let held: Vec<usize> = (0..classes).filter(|&c| cfg.classes == ClassSet::All || pixels(c) > 0.0).collect();
        let weight = 1.0 / (regions.len() * held.len()) as f64;
        for class in held {
            let of_image = |sum: (f64, f64), &image: &usize| {
                let (overlap, mass) = sums[image * classes + class];
                (sum.0 + overlap, sum.1 + mass)
            };
            let (overlap, mass) = images.iter().fold((0.0, 0.0), of_image);
            let above = 2.0 * overlap + cfg.smoothing;
            let below = mass + pixels(class) + cfg.smoothing;
            // A NaN goes on, into the loss.
            if below != 0.0 {
                value += weight * (1.0 - above / below);
                for &image in *images {
                    let plane = &mut planes[image * classes + class];
                    plane.on_label = T::from_f64(-weight * 2.0 / below);
                    plane.everywhere = T::from_f64(weight * above / (below * below));
                }
            }
        }
    }
    node(OP, logits, value, DiceSlope { labels, planes, squared: cfg.squared })
}

/// ∂L/∂p of one image and class.
#[derive(Clone, Copy)]
struct Plane<T> {
    class: usize,
    /// Where the pixel is labelled with the class.
    on_label: T,
    /// Added at every pixel; times 2p with squares.
    everywhere: T,
}

struct DiceSlope<T> {
    labels: Labels,
    planes: Vec<Plane<T>>,
    squared: bool,
}

impl<T: WithDType> Slope<T> for DiceSlope<T> {
    fn gradient(&self, logits: &Tensor, upstream: f64) -> Result<Vec<T>> {
        let (upstream, positions) = (T::from_f64(upstream), self.labels.positions());
        through_softmax(logits, &self.labels, |plane, pixel, p: T| {
            let Plane { class, on_label, everywhere } = self.planes[plane];
            let id = self.labels.ids[plane / self.labels.classes * positions + pixel];
            let slope = if self.squared { everywhere * (p + p) } else { everywhere };
            upstream * if usize::from(id) == class { slope + on_label } else { slope }
        })
    }
}
