//! Softmax and cross-entropy of `[N,C,H,W]` logits and `[N,H,W]` labels in one pass each way.
//!
//! loss = Σ w(label) · (ln Σᶜ exp(zᶜ) − z(label)) / Σ w(label) over the pixels whose label is not the ignored one;
//! dzᶜ = g · w(label) / Σ w · (softmaxᶜ − (1 where c is the label)).
//!
//! Forward keeps two numbers per pixel (the largest logit and 1 / Σ exp(z − largest)), so that backward needs one
//! exponential per logit and no second look for the largest.

use crate::Result;
use crate::activation::{
    Element, FLUSH, Kernel, Planes, TILE, Tile, flush, for_each_tile, largest, tile_count, vectorised,
};
use crate::error::{check_length, param};
use crate::parallel::Shared;

const OP: &str = "cross_entropy";

/// N images of C classes, H high and W wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub batch: usize,
    /// C.
    pub classes: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
}

impl Sizes {
    fn planes(self) -> Planes {
        Planes { batch: self.batch, channels: self.classes, pixels: self.height * self.width }
    }

    fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }
}

/// What a pixel counts.
#[derive(Clone, Copy, Debug)]
pub struct Weighting<'a> {
    /// Pixels with this label count nothing.
    pub ignore_label: u8,
    /// A factor ≥ 0 for the pixels of each class, `[C]`; none: 1 for all.
    pub class_weights: Option<&'a [f64]>,
}

impl Weighting<'_> {
    #[inline(always)]
    fn of(&self, label: u8) -> f64 {
        if label == self.ignore_label {
            return 0.0;
        }
        self.class_weights.map_or(1.0, |weights| weights[usize::from(label)])
    }
}

/// What [`forward`] found: the loss, and what [`backward`] needs.
#[derive(Clone, Debug)]
pub struct Forward<T> {
    /// The weighted mean over the counted pixels, in nats; 0 where none counts.
    pub loss: f64,
    /// Σ of the weights of the counted pixels.
    pub weight: f64,
    /// The largest logit of each pixel, `[N,H,W]`.
    maximum: Vec<T>,
    /// 1 / Σ exp(z − largest) of each pixel, `[N,H,W]`.
    reciprocal: Vec<T>,
}

/// The mean cross-entropy.
///
/// Finite for all finite logits up to half the largest number. A NaN at a counted pixel makes the loss one; pixels
/// that do not count change nothing, whatever their logits are.
///
/// # Errors
/// Length; Param for a weight that is not a finite number ≥ 0, and for a label that is neither a class nor the ignored
/// one: it is named with its pixel.
pub fn forward<T: Element>(sizes: Sizes, logits: &[T], labels: &[u8], weighting: Weighting<'_>) -> Result<Forward<T>> {
    check(sizes, logits, labels, weighting)?;
    let planes = sizes.planes();
    let mut maximum = vec![T::ZERO; sizes.pixels()];
    let mut reciprocal = vec![T::ZERO; sizes.pixels()];
    let mut sums = vec![(0.0, 0.0); tile_count(planes)];
    let (maxima, reciprocals, tile_sums) =
        (Shared::new(&mut maximum), Shared::new(&mut reciprocal), Shared::new(&mut sums));
    for_each_tile(planes, |tile| {
        let from = tile.image * planes.pixels + tile.from;
        #[allow(unsafe_code, reason = "tasks write disjoint tiles")]
        // SAFETY: tiles are disjoint ranges of pixels, and each has an index of its own.
        let (maximum, reciprocal, sums) =
            unsafe { (maxima.part(from, tile.len), reciprocals.part(from, tile.len), tile_sums.part(tile.index, 1)) };
        let labels = &labels[from..from + tile.len];
        sums[0] = vectorised(TileLoss { tile, logits, labels, weighting, maximum, reciprocal });
    });
    let (loss, weight) = sums.iter().fold((0.0, 0.0), |sum, tile| (sum.0 + tile.0, sum.1 + tile.1));
    let loss = if weight > 0.0 { loss / weight } else { 0.0 };
    Ok(Forward { loss, weight, maximum, reciprocal })
}

/// The gradient of the logits from that of the loss, `g`. Pixels that do not count get 0.
///
/// # Errors
/// Length; Param as [`forward`].
pub fn backward<T: Element>(
    sizes: Sizes,
    logits: &[T],
    labels: &[u8],
    weighting: Weighting<'_>,
    forward: &Forward<T>,
    g: f64,
    gradient: &mut [T],
) -> Result<()> {
    check(sizes, logits, labels, weighting)?;
    check_length(OP, "saved state", forward.maximum.len(), sizes.pixels())?;
    check_length(OP, "logit gradient", gradient.len(), logits.len())?;
    let planes = sizes.planes();
    let scale = if forward.weight > 0.0 { g / forward.weight } else { 0.0 };
    let gradient = Shared::new(gradient);
    for_each_tile(planes, |tile| {
        let from = tile.image * planes.pixels + tile.from;
        let pixels = from..from + tile.len;
        vectorised(TileGradient {
            tile,
            logits,
            labels: &labels[pixels.clone()],
            weighting,
            maximum: &forward.maximum[pixels.clone()],
            reciprocal: &forward.reciprocal[pixels],
            scale,
            gradient,
        });
    });
    Ok(())
}

fn check<T>(sizes: Sizes, logits: &[T], labels: &[u8], weighting: Weighting<'_>) -> Result<()> {
    check_length(OP, "logits", logits.len(), sizes.planes().elements())?;
    check_labels(sizes, labels, weighting)
}

/// What [`forward`] checks of its labels and weights, for callers that want the error before they call it.
///
/// # Errors
/// As [`forward`].
pub fn check_labels(sizes: Sizes, labels: &[u8], weighting: Weighting<'_>) -> Result<()> {
    check_length(OP, "labels", labels.len(), sizes.pixels())?;
    if let Some(weights) = weighting.class_weights {
        check_length(OP, "class_weights", weights.len(), sizes.classes)?;
        if let Some((class, weight)) = weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
            return Err(param(OP, "class_weights", "finite numbers ≥ 0", format!("{weight} for class {class}")));
        }
    }
    let Ok(classes) = u8::try_from(sizes.classes) else { return Ok(()) };
    let wrong = |label: &u8| (*label >= classes) & (*label != weighting.ignore_label);
    // Whole chunks first: without an early exit inside, the search vectorises.
    let chunk = labels.chunks(1 << 12).position(|chunk| chunk.iter().fold(false, |any, label| any | wrong(label)));
    let start = chunk.map_or(labels.len(), |index| index << 12);
    let Some(offset) = labels[start..].iter().position(wrong) else { return Ok(()) };
    let pixel = start + offset;
    let (n, h, w) = (pixel / (sizes.height * sizes.width), pixel / sizes.width % sizes.height, pixel % sizes.width);
    Err(param(
        OP,
        "labels",
        format!("a class id below {classes} (the number of classes) or the ignored label {}", weighting.ignore_label),
        format!("{} at pixel (n {n}, h {h}, w {w})", labels[pixel]),
    ))
}

/// The loss and the weight of a tile.
struct TileLoss<'a, T> {
    tile: Tile,
    logits: &'a [T],
    labels: &'a [u8],
    weighting: Weighting<'a>,
    maximum: &'a mut [T],
    reciprocal: &'a mut [T],
}

impl<T: Element> Kernel for TileLoss<'_, T> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let Self { tile, logits, labels, weighting, maximum, reciprocal } = self;
        let classes = tile.sizes.channels;
        let (mut partial, mut total) = ([T::ZERO; TILE], [0.0; TILE]);
        let (partial, total) = (&mut partial[..tile.len], &mut total[..tile.len]);
        maximum.fill(T::NEG_INFINITY);
        largest(tile, logits, maximum);
        for class in 0..classes {
            for ((partial, z), maximum) in partial.iter_mut().zip(tile.of(logits, class)).zip(maximum.iter()) {
                *partial += (*z - *maximum).e_to();
            }
            if class % FLUSH == FLUSH - 1 || class == classes - 1 {
                flush(partial, total);
            }
        }
        for ((partial, total), reciprocal) in partial.iter_mut().zip(total.iter()).zip(reciprocal.iter_mut()) {
            let sum = T::from_f64(*total);
            *reciprocal = T::ONE / sum;
            *partial = sum.log();
        }
        let (mut loss, mut weight) = (0.0, 0.0);
        for (pixel, label) in labels.iter().enumerate() {
            let own = weighting.of(*label);
            if own > 0.0 {
                let z = logits[tile.start(usize::from(*label)) + pixel];
                loss += own * ((maximum[pixel] - z).to_f64() + partial[pixel].to_f64());
                weight += own;
            }
        }
        (loss, weight)
    }
}

/// The gradient of a tile.
struct TileGradient<'a, T> {
    tile: Tile,
    logits: &'a [T],
    labels: &'a [u8],
    weighting: Weighting<'a>,
    maximum: &'a [T],
    reciprocal: &'a [T],
    scale: f64,
    gradient: Shared<'a, T>,
}

impl<T: Element> Kernel for TileGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tile, logits, labels, weighting, maximum, reciprocal, scale, gradient } = self;
        let mut own = [T::ZERO; TILE];
        let own = &mut own[..tile.len];
        for (own, label) in own.iter_mut().zip(labels) {
            *own = T::from_f64(scale * weighting.of(*label));
        }
        for class in 0..tile.sizes.channels {
            let out = tile.of_mut(&gradient, class).iter_mut().zip(tile.of(logits, class));
            for ((((out, z), maximum), reciprocal), own) in out.zip(maximum).zip(reciprocal).zip(own.iter()) {
                let share = (*z - *maximum).e_to() * *reciprocal * *own;
                // Exactly 0 where the pixel does not count, even beside a NaN.
                *out = if *own == T::ZERO { T::ZERO } else { share };
            }
        }
        for (pixel, (label, own)) in labels.iter().zip(own.iter()).enumerate() {
            if *own != T::ZERO {
                tile.of_mut(&gradient, usize::from(*label))[pixel] += -*own;
            }
        }
    }
}

#[cfg(test)]
mod tests;
