//! Lovász-softmax: a piecewise linear surrogate of 1 − IoU, the measure that segmentation is judged by.
//!
//! e_i = 1 − p_c where pixel i is labelled c, p_c elsewhere;   sorted from large to small: e_(1) ≥ e_(2) ≥ …
//! J_k = 1 − (G − F_k) / (G + k − F_k),  G pixels of the class, F_k of them among the first k;  J_0 = 0
//! L = mean over classes of Σ_k e_(k) · (J_k − J_{k−1})
//!
//! Source: Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, eq. 9 and 12, algorithm 1.
//! The gradient through sorting and softmax: docs/losses/lovasz_softmax.md.

use candle_core::{Tensor, WithDType};
use dsd_ops::{check, softmax_channels};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::node::{Slope, by_element, node, through_softmax, with_values};
use super::{ClassSet, Scope};
use crate::Result;

const OP: &str = "lovasz_softmax";

/// Settings of [`lovasz_softmax`]. No `Default`: the recipe owns the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LovaszSoftmax {
    /// The classes of the mean. The paper's choice is those present.
    pub classes: ClassSet,
    /// What is sorted together.
    pub scope: Scope,
}

/// The Lovász extension of the Jaccard loss, on softmax probabilities.
///
/// # Shapes
/// logits: `[N,C,H,W]` float. labels: `[N,H,W]` u8, class ids below C or `ignore_label`.
/// # Returns
/// `[]` float, dimensionless, 0 to 1; at probabilities of 0 and 1 it is 1 − mean IoU of the scope. No pixel that counts:
/// 0, with zero gradient.
/// # Gradient
/// Reaches `logits`. Where errors are equal the loss has a kink; there it is the slope for row-major order of (n, h, w).
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32; sorted stably by definition, summed in f64.
/// # Errors
/// Shape, DType or Param, naming the argument; at most 2³² pixels.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use dsd_similarity::{ClassSet, LovaszSoftmax, Scope, lovasz_softmax};
/// // Two classes, two pixels, even odds: every error is ½, and so is Σ e · ΔJ.
/// let logits = Tensor::zeros((1, 2, 1, 2), DType::F64, &Device::Cpu)?;
/// let labels = Tensor::new(&[[[0u8, 1]]], &Device::Cpu)?;
/// let cfg = LovaszSoftmax { classes: ClassSet::Present, scope: Scope::Batch };
/// let loss = lovasz_softmax(&logits, &labels, 255, cfg)?.to_scalar::<f64>()?;
/// assert!((loss - 0.5).abs() < 1e-15);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn lovasz_softmax(logits: &Tensor, labels: &Tensor, ignore_label: u8, cfg: LovaszSoftmax) -> Result<Tensor> {
    let labels = Labels::read(OP, logits, labels, ignore_label)?;
    if u32::try_from(labels.ids.len()).is_err() {
        return Err(check::param(OP, "labels", "at most 4294967295 pixels", labels.ids.len()));
    }
    by_element!(logits, typed(logits, labels, cfg))
}

/// Errors in the order of their ranks: one integer holds error and pixel, so that sorting is exact and never ties.
trait Ranked: WithDType {
    /// Ascending keys are descending errors, then ascending pixels.
    type Key: Ord + Copy + Send + Sync;
    fn key(error: Self, pixel: u32) -> Self::Key;
    fn pixel(key: Self::Key) -> u32;
}

// The bits of floats ≥ 0 are in the order of the floats.
impl Ranked for f32 {
    type Key = u64;
    fn key(error: Self, pixel: u32) -> u64 {
        u64::from(!error.to_bits()) << 32 | u64::from(pixel)
    }
    fn pixel(key: u64) -> u32 {
        (key & u64::from(u32::MAX)) as u32
    }
}

impl Ranked for f64 {
    type Key = (u64, u32);
    fn key(error: Self, pixel: u32) -> (u64, u32) {
        (!error.to_bits(), pixel)
    }
    fn pixel(key: (u64, u32)) -> u32 {
        key.1
    }
}

/// One class within one scope: what is sorted together.
struct Group<'a, T> {
    class: usize,
    /// Counted pixels of the scope, as indices into the batch.
    pixels: &'a [u32],
    /// Pixels of the class among them.
    labelled: usize,
    /// Share in the mean.
    weight: f64,
    /// ∂L/∂p of the images of the scope; the first is `first_image`.
    slopes: &'a mut [T],
    first_image: usize,
}

fn typed<T: Ranked>(logits: &Tensor, labels: Labels, cfg: LovaszSoftmax) -> Result<Tensor> {
    let (batch, classes, positions) = (labels.batch, labels.classes, labels.positions());
    let histogram = labels.histogram();
    let images_per_scope = if cfg.scope == Scope::Batch { batch } else { 1 };
    let scopes = batch / images_per_scope;
    let counted: Vec<Vec<u32>> = (0..scopes)
        .map(|scope| {
            let from = scope * images_per_scope * positions;
            let ids = &labels.ids[from..from + images_per_scope * positions];
            let pixels = ids.iter().enumerate().filter(|(_, id)| **id != labels.ignored);
            pixels.map(|(pixel, _)| (from + pixel) as u32).collect()
        })
        .collect();
    let pixels_of = |scope: usize, class: usize| -> usize {
        let images = scope * images_per_scope..(scope + 1) * images_per_scope;
        images.map(|image| histogram[image][class]).sum()
    };
    let held = |scope: usize| -> Vec<usize> {
        (0..classes).filter(|&class| cfg.classes == ClassSet::All || pixels_of(scope, class) > 0).collect()
    };
    let counting = counted.iter().filter(|pixels| !pixels.is_empty()).count();

    // Slopes are kept for the classes that some scope holds, class by class.
    let mut place = vec![None; classes];
    for scope in (0..scopes).filter(|&scope| !counted[scope].is_empty()) {
        held(scope).into_iter().for_each(|class| place[class] = Some(0));
    }
    let mut places = 0;
    for slot in place.iter_mut().filter(|slot| slot.is_some()) {
        *slot = Some(places);
        places += 1;
    }
    let mut slopes = vec![T::zero(); places * batch * positions];
    let mut groups = Vec::new();
    let kept: Vec<usize> = (0..classes).filter(|&class| place[class].is_some()).collect();
    for (index, slopes) in slopes.chunks_mut(images_per_scope * positions).enumerate() {
        let (class, scope) = (kept[index / scopes], index % scopes);
        let labelled = pixels_of(scope, class);
        if !counted[scope].is_empty() && (labelled > 0 || cfg.classes == ClassSet::All) {
            let weight = 1.0 / (counting * held(scope).len()) as f64;
            let (pixels, first_image) = (counted[scope].as_slice(), scope * images_per_scope);
            groups.push(Group { class, pixels, labelled, weight, slopes, first_image });
        }
    }

    let probs = softmax_channels(&logits.detach())?;
    let values: Vec<f64> = with_values(&probs, |probs: &[T]| {
        groups.into_par_iter().with_max_len(1).map(|group| extension(group, probs, &labels)).collect()
    })?;
    node(OP, logits, values.iter().sum(), LovaszSlope { labels, place, slopes })
}

/// The group's part of the loss; fills in its slopes.
fn extension<T: Ranked>(group: Group<'_, T>, probs: &[T], labels: &Labels) -> f64 {
    let (classes, positions) = (labels.classes, labels.positions());
    let labelled = |pixel: u32| usize::from(labels.ids[pixel as usize]) == group.class;
    let error = |pixel: u32| {
        let (image, position) = (pixel as usize / positions, pixel as usize % positions);
        let p = probs[(image * classes + group.class) * positions + position];
        // A probability that was rounded above 1 must not become a negative error, whose bits are out of order.
        if !labelled(pixel) {
            p
        } else if p > T::one() {
            T::zero()
        } else {
            T::one() - p
        }
    };
    let mut keys: Vec<T::Key> = group.pixels.iter().map(|&pixel| T::key(error(pixel), pixel)).collect();
    keys.sort_unstable();

    let (mut value, mut intersection, mut union) = (0.0, group.labelled as f64, group.labelled as f64);
    for key in keys {
        let pixel = T::pixel(key);
        // J_k − J_{k−1} without a difference of nearly equal numbers.
        let (rise, sign) = if labelled(pixel) {
            intersection -= 1.0;
            (1.0 / union, -1.0)
        } else {
            let rise = if union > 0.0 { intersection / (union * (union + 1.0)) } else { 1.0 };
            union += 1.0;
            (rise, 1.0)
        };
        value += rise * error(pixel).to_f64();
        group.slopes[pixel as usize - group.first_image * positions] = T::from_f64(group.weight * rise * sign);
    }
    group.weight * value
}

struct LovaszSlope<T> {
    labels: Labels,
    /// Where the slopes of a class are.
    place: Vec<Option<usize>>,
    /// ∂L/∂p, `[held classes][N][H·W]`.
    slopes: Vec<T>,
}

impl<T: WithDType> Slope<T> for LovaszSlope<T> {
    fn gradient(&self, logits: &Tensor, upstream: f64) -> Result<Vec<T>> {
        let (batch, classes, positions) = (self.labels.batch, self.labels.classes, self.labels.positions());
        let upstream = T::from_f64(upstream);
        through_softmax(logits, &self.labels, |plane, pixel, _: T| match self.place[plane % classes] {
            Some(place) => upstream * self.slopes[(place * batch + plane / classes) * positions + pixel],
            None => T::zero(),
        })
    }
}
