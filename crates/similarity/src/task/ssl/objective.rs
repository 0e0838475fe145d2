//! Value and gradient of the structural similarity loss.

use candle_core::{Tensor, WithDType};
use rayon::prelude::*;

use super::local::Local;
use super::probability::{Map, Sizes, Source, Top};
use super::{EntropyMean, Mining, Probability, Ssl};
use crate::Result;

/// The greatest e up to which a prediction counts as perfect: rounding has a greatest e, too.
const NO_ERROR: f64 = 1e-6;

/// What the loss is taken over.
pub(super) struct Problem {
    pub(super) cfg: Ssl,
    sizes: Sizes,
    /// `[N,H,W]`.
    counted: Vec<bool>,
    local: Local,
}

/// What the forward pass found.
pub(super) struct Forward<T> {
    pub(super) value: f64,
    /// M.
    pub(super) mined: usize,
    /// The difference of the standardised maps, p's minus y's, `[N,C,H,W]`; 0 where there is none.
    pub(super) differences: Vec<T>,
    /// The mining threshold of each plane, `[N,C]`.
    thresholds: Vec<f64>,
}

/// One plane's part of the forward pass.
struct Plane {
    greatest: f64,
    entropy: f64,
}

/// What both passes need of a plane.
struct Elements {
    p: Map,
    y: Map,
}

impl Problem {
    /// `counted`: `[N,H,W]`.
    pub(super) fn new(logits: &Tensor, counted: Vec<bool>, cfg: Ssl) -> Result<Self> {
        let (_, classes, height, width) = logits.dims4()?;
        let sizes = Sizes { classes, height, width };
        Ok(Self { cfg, sizes, counted, local: Local::new(sizes, &cfg) })
    }

    /// The probabilities that a [`super::field`] stands for.
    pub(super) fn source<'a, T: WithDType>(&self, field: &'a [T]) -> Source<'a, T> {
        Source::of(self.cfg.probability, field, self.sizes)
    }

    fn counted(&self, plane: usize) -> &[bool] {
        let (image, positions) = (plane / self.sizes.classes, self.sizes.positions());
        &self.counted[image * positions..(image + 1) * positions]
    }

    /// Probabilities and targets of a plane; both 0 at pixels that do not count.
    fn elements<T: WithDType>(&self, plane: usize, student: &Source<'_, T>, target: &Source<'_, T>) -> Elements {
        let (mut p, mut y) = (student.map(plane, self.sizes), target.map(plane, self.sizes));
        for (position, _) in self.counted(plane).iter().enumerate().filter(|(_, counted)| !**counted) {
            p.p[position] = 0.0;
            y.p[position] = 0.0;
        }
        Elements { p, y }
    }

    /// What the entropy is divided by.
    fn entropy_divisor(&self) -> f64 {
        let pixels = self.counted.iter().filter(|&&counted| counted).count() as f64;
        match self.cfg.entropy_mean {
            EntropyMean::Pixels => pixels,
            EntropyMean::Elements => pixels * self.sizes.classes as f64,
        }
    }

    pub(super) fn forward<T: WithDType>(&self, student: &Source<'_, T>, target: &Source<'_, T>) -> Forward<T> {
        let positions = self.sizes.positions();
        let planes = self.counted.len() / positions * self.sizes.classes;
        let mut differences = vec![T::zero(); planes * positions];
        // e · b of each element: the threshold is known after the last of them.
        let mut products = vec![T::zero(); planes * positions];
        let found: Vec<Plane> = (differences.par_chunks_mut(positions).zip(products.par_chunks_mut(positions)))
            .enumerate()
            .map(|(plane, (differences, products))| {
                self.forward_plane(plane, &self.elements(plane, student, target), differences, products)
            })
            .collect();

        let share_of = |share: f64, greatest: f64| if greatest > NO_ERROR { share * greatest } else { f64::INFINITY };
        let thresholds: Vec<f64> = match self.cfg.mining {
            Mining::Batch { share } => {
                let greatest = found.iter().fold(0.0, |greatest: f64, plane| greatest.max(plane.greatest));
                vec![share_of(share, greatest); planes]
            }
            Mining::Map { share } => found.iter().map(|plane| share_of(share, plane.greatest)).collect(),
            Mining::Bound { share } => vec![share * self.cfg.greatest_error(); planes],
            Mining::Absolute { error } => vec![error; planes],
        };
        let sums: Vec<(f64, usize)> = (differences.par_chunks(positions).zip(products.par_chunks(positions)))
            .zip(&thresholds)
            .map(|((differences, products), &threshold)| {
                let (mut sum, mut mined) = (0.0, 0);
                for (difference, product) in differences.iter().zip(products) {
                    if is_mined(difference.to_f64(), threshold) {
                        sum += product.to_f64();
                        mined += 1;
                    }
                }
                (sum, mined)
            })
            .collect();
        let (sum, mined) = sums.iter().fold((0.0, 0), |total, plane| (total.0 + plane.0, total.1 + plane.1));
        let structure = if mined > 0 { sum / mined as f64 } else { 0.0 };
        let divisor = self.entropy_divisor();
        let entropy: f64 = found.iter().map(|plane| plane.entropy).sum();
        let entropy = if divisor > 0.0 { entropy / divisor } else { 0.0 };
        let value = self.cfg.lambda * entropy + (1.0 - self.cfg.lambda) * structure;
        Forward { value, mined, differences, thresholds }
    }

    fn forward_plane<T: WithDType>(
        &self,
        plane: usize,
        elements: &Elements,
        differences: &mut [T],
        products: &mut [T],
    ) -> Plane {
        let counted = self.counted(plane);
        let of_p = self.local.standardise(&elements.p.p, counted).field;
        let of_y = self.local.standardise(&elements.y.p, counted).field;
        let (mut greatest, mut entropy) = (0.0, 0.0);
        for position in (0..counted.len()).filter(|&position| counted[position]) {
            let divergence = divergence(elements, position);
            entropy += match self.cfg.probability {
                Probability::Sigmoid => divergence,
                Probability::Softmax => own_part(elements, position),
            };
            if self.local.has_window(position) {
                let difference = of_p[position] - of_y[position];
                greatest = difference.abs().max(greatest);
                differences[position] = T::from_f64(difference);
                products[position] = T::from_f64(difference.abs() * divergence);
            }
        }
        Plane { greatest, entropy }
    }

    /// `upstream` · ∂L/∂logits.
    pub(super) fn backward<T: WithDType>(
        &self,
        student: &Source<'_, T>,
        target: &Source<'_, T>,
        forward: &Forward<T>,
        upstream: f64,
    ) -> Vec<T> {
        let positions = self.sizes.positions();
        let divisor = self.entropy_divisor();
        let factors = Factors {
            entropy: if divisor > 0.0 { upstream * self.cfg.lambda / divisor } else { 0.0 },
            structure: if forward.mined > 0 { upstream * (1.0 - self.cfg.lambda) / forward.mined as f64 } else { 0.0 },
        };
        let mut gradient = vec![T::zero(); forward.differences.len()];
        if let Source::Softmax(_, top) = student {
            // Image by image: the softmax needs all classes of a pixel.
            let image_size = positions * self.sizes.classes;
            for (image, gradient) in gradient.chunks_mut(image_size).enumerate() {
                let planes: Vec<usize> = (image * self.sizes.classes..(image + 1) * self.sizes.classes).collect();
                let parts: Vec<(Elements, Slopes)> = planes
                    .par_iter()
                    .map(|&plane| {
                        let elements = self.elements(plane, student, target);
                        let slopes = self.slopes(plane, &elements, forward, factors);
                        (elements, slopes)
                    })
                    .collect();
                let top = &top[image * positions..(image + 1) * positions];
                self.through_softmax(self.counted(planes[0]), top, &parts, factors, gradient);
            }
        } else {
            gradient.par_chunks_mut(positions).enumerate().for_each(|(plane, gradient)| {
                let elements = self.elements(plane, student, target);
                let slopes = self.slopes(plane, &elements, forward, factors);
                let counted = self.counted(plane);
                for position in (0..positions).filter(|&position| counted[position]) {
                    let (p, y) = (elements.p.p[position], elements.y.p[position]);
                    let of_error = p * (1.0 - p) * slopes.of_p[position];
                    let of_entropy = (factors.entropy + slopes.weights[position]) * (p - y);
                    gradient[position] = T::from_f64(of_error + of_entropy);
                }
            });
        }
        gradient
    }

    /// The structural part's slopes of one plane.
    fn slopes<T: WithDType>(
        &self,
        plane: usize,
        elements: &Elements,
        forward: &Forward<T>,
        factors: Factors,
    ) -> Slopes {
        let (positions, counted) = (self.sizes.positions(), self.counted(plane));
        let differences = &forward.differences[plane * positions..(plane + 1) * positions];
        let threshold = forward.thresholds[plane];
        let mut weights = vec![0.0; positions];
        let mut upstream = vec![0.0; positions];
        for (position, difference) in differences.iter().enumerate() {
            let difference = difference.to_f64();
            if is_mined(difference, threshold) {
                weights[position] = factors.structure * difference.abs();
                if self.cfg.differentiate_error {
                    upstream[position] = factors.structure * divergence(elements, position) * difference.signum();
                }
            }
        }
        let of_p = if self.cfg.differentiate_error && factors.structure != 0.0 {
            let standardised = self.local.standardise(&elements.p.p, counted);
            self.local.adjoint(&elements.p.p, &standardised, counted, &upstream)
        } else {
            upstream
        };
        Slopes { of_p, weights }
    }

    /// From the slopes of all planes of an image to its logits; docs/losses/ssl.md has the derivation.
    fn through_softmax<T: WithDType>(
        &self,
        counted: &[bool],
        top: &[Top],
        parts: &[(Elements, Slopes)],
        factors: Factors,
        gradient: &mut [T],
    ) {
        let positions = self.sizes.positions();
        let pull = |class: usize, position: usize| {
            let (elements, slopes) = &parts[class];
            slopes.weights[position] * (elements.p.p[position] - elements.y.p[position])
        };
        // Σ_k p_k·G_k, and Σ B_k/(1 − p_k) without the likeliest class.
        let mut sums = vec![(0.0, 0.0); positions];
        for position in (0..positions).filter(|&position| counted[position]) {
            for (class, (elements, slopes)) in parts.iter().enumerate() {
                let p = elements.p.p[position];
                sums[position].0 += p * slopes.of_p[position];
                if class != top[position].class {
                    sums[position].1 += pull(class, position) / (1.0 - p);
                }
            }
        }
        gradient.par_chunks_mut(positions).zip(parts).enumerate().for_each(
            |(class, (gradient, (elements, slopes)))| {
                for position in (0..positions).filter(|&position| counted[position]) {
                    let (p, y) = (elements.p.p[position], elements.y.p[position]);
                    let own = pull(class, position);
                    let mut slope = p * (slopes.of_p[position] - sums[position].0) + own - p * sums[position].1;
                    let best = top[position];
                    if class != best.class {
                        let ratio = (elements.p.log_p[position] - best.log_rest).exp();
                        slope += p * own / (1.0 - p) - pull(best.class, position) * ratio;
                    }
                    gradient[position] = T::from_f64(slope + factors.entropy * (p - y));
                }
            },
        );
    }
}

/// What the two parts of the loss are multiplied by.
#[derive(Clone, Copy)]
struct Factors {
    entropy: f64,
    structure: f64,
}

/// The structural part's slopes of one plane: through p, and e·f/M, which multiplies the slope of b.
struct Slopes {
    of_p: Vec<f64>,
    weights: Vec<f64>,
}

/// A NaN is mined: it has to reach the loss, where training reports it.
fn is_mined(difference: f64, threshold: f64) -> bool {
    difference.abs() > threshold || difference.is_nan()
}

/// y ln (y/p) + (1 − y) ln ((1 − y)/(1 − p)).
fn divergence(elements: &Elements, position: usize) -> f64 {
    let rest = 1.0 - elements.y.p[position];
    let other = if rest == 0.0 { 0.0 } else { rest * (elements.y.log_rest[position] - elements.p.log_rest[position]) };
    let sum = own_part(elements, position) + other;
    // Rounding may leave a little below 0. A NaN goes through.
    if sum < 0.0 { 0.0 } else { sum }
}

/// y ln (y/p).
fn own_part(elements: &Elements, position: usize) -> f64 {
    let y = elements.y.p[position];
    if y == 0.0 { 0.0 } else { y * (elements.y.log_p[position] - elements.p.log_p[position]) }
}
