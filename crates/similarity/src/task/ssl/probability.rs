//! Probabilities of elements and their logarithms, one map at a time.

use candle_core::WithDType;

use super::Probability;

/// Sizes of a batch.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) classes: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Sizes {
    pub(super) fn positions(self) -> usize {
        self.height * self.width
    }
}

/// Where the probabilities of a batch come from.
pub(super) enum Source<'a, T> {
    /// Logits `[N,C,H,W]`.
    Sigmoid(&'a [T]),
    /// Log-softmax `[N,C,H,W]`, and the likeliest class of each pixel.
    Softmax(&'a [T], Vec<Top>),
    /// Class ids `[N,H,W]`.
    Labels(&'a [u8]),
}

/// The likeliest class of a pixel: the one whose 1 − p may be too small for a difference.
#[derive(Clone, Copy)]
pub(super) struct Top {
    pub(super) class: usize,
    /// ln(1 − p) of it, −∞ where it is the only class.
    pub(super) log_rest: f64,
}

/// One map, of an image and class, row-major.
pub(super) struct Map {
    /// p.
    pub(super) p: Vec<f64>,
    /// ln p.
    pub(super) log_p: Vec<f64>,
    /// ln(1 − p).
    pub(super) log_rest: Vec<f64>,
}

impl<'a, T: WithDType> Source<'a, T> {
    pub(super) fn of(probability: Probability, field: &'a [T], sizes: Sizes) -> Self {
        match probability {
            Probability::Sigmoid => Self::Sigmoid(field),
            Probability::Softmax => Self::Softmax(field, likeliest(field, sizes)),
        }
    }

    /// The map of a plane, the image's index times C plus the class.
    pub(super) fn map(&self, plane: usize, sizes: Sizes) -> Map {
        let positions = sizes.positions();
        let (image, class) = (plane / sizes.classes, plane % sizes.classes);
        let mut map = Map {
            p: Vec::with_capacity(positions),
            log_p: Vec::with_capacity(positions),
            log_rest: Vec::with_capacity(positions),
        };
        let mut push = |(p, log_p, log_rest)| {
            map.p.push(p);
            map.log_p.push(log_p);
            map.log_rest.push(log_rest);
        };
        match self {
            Self::Sigmoid(logits) => {
                logits[plane * positions..(plane + 1) * positions].iter().for_each(|z| push(sigmoid(z.to_f64())));
            }
            Self::Softmax(log_probs, top) => {
                let log_probs = &log_probs[plane * positions..(plane + 1) * positions];
                for (log_p, top) in log_probs.iter().zip(&top[image * positions..]) {
                    let log_p = log_p.to_f64();
                    let p = log_p.exp();
                    push((p, log_p, if top.class == class { top.log_rest } else { (-p).ln_1p() }));
                }
            }
            Self::Labels(ids) => {
                for &id in &ids[image * positions..(image + 1) * positions] {
                    let on = usize::from(id) == class;
                    // The logarithm of 0 is never used: its factor is 0.
                    push(if on { (1.0, 0.0, f64::NEG_INFINITY) } else { (0.0, f64::NEG_INFINITY, 0.0) });
                }
            }
        }
        map
    }
}

/// p, ln p and ln(1 − p).
fn sigmoid(z: f64) -> (f64, f64, f64) {
    let small = (-z.abs()).exp();
    let log = small.ln_1p();
    let p = if z >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
    (p, z.min(0.0) - log, -z.max(0.0) - log)
}

fn likeliest<T: WithDType>(log_probs: &[T], sizes: Sizes) -> Vec<Top> {
    let positions = sizes.positions();
    let image = |log_probs: &[T]| -> Vec<Top> {
        let at = |class: usize, position: usize| log_probs[class * positions + position].to_f64();
        let mut top = vec![0; positions];
        let mut second = vec![f64::NEG_INFINITY; positions];
        for position in 0..positions {
            for class in 1..sizes.classes {
                let (log_p, best) = (at(class, position), at(top[position], position));
                if log_p > best {
                    (top[position], second[position]) = (class, best);
                } else if log_p > second[position] {
                    second[position] = log_p;
                }
            }
        }
        (0..positions)
            .map(|position| {
                let (class, second) = (top[position], second[position]);
                let others = (0..sizes.classes).filter(|&other| other != class);
                let sum: f64 = others.map(|other| (at(other, position) - second).exp()).sum();
                Top { class, log_rest: if sizes.classes == 1 { f64::NEG_INFINITY } else { second + sum.ln() } }
            })
            .collect()
    };
    log_probs.chunks(positions * sizes.classes).flat_map(image).collect()
}
