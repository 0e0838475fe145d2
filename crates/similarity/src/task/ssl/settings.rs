//! The switches of the structural similarity loss.

use dsd_ops::check;
use serde::{Deserialize, Serialize};

use crate::Result;

/// What turns logits into the p of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probability {
    /// Each class by itself, 1 / (1 + exp(−z)). What the re-implementations do.
    Sigmoid,
    /// Over the classes. The cross-entropy that λ weighs is then the categorical one, −Σ y ln p.
    Softmax,
}

/// How σ is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deviation {
    /// √(g∗x² − (g∗x)²), as in SSIM.
    Window,
    /// √(g∗(x − g∗x)²): each neighbour's difference to its own mean.
    WindowOfDeviations,
    /// μ and σ of the whole map of an image and class, over its counted pixels. Not local; as some re-implementations.
    WholeMap,
}

/// What a window holds beyond the border of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// The nearest pixel of the image.
    Replicate,
    /// y = p = 0.
    Zero,
    /// Nothing: elements whose window crosses the border have no e and are not mined.
    Valid,
}

/// The threshold that e must exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mining {
    /// `share` times the greatest e of the batch. Nothing is mined where that is below 1e-6.
    Batch {
        /// β, 0 to 1.
        share: f64,
    },
    /// `share` times the greatest e of the image and class. Nothing is mined where that is below 1e-6.
    Map {
        /// β, 0 to 1.
        share: f64,
    },
    /// `share` times the greatest e that a window can have, [`Ssl::greatest_error`]; not with [`Deviation::WholeMap`].
    Bound {
        /// β, 0 to 1.
        share: f64,
    },
    /// A fixed e, finite, ≥ 0.
    Absolute {
        /// The threshold.
        error: f64,
    },
}

/// What the cross-entropy that λ weighs is a mean over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyMean {
    /// Counted pixels: summed over classes first.
    Pixels,
    /// Counted pixels times classes.
    Elements,
}

/// Settings of [`ssl`](super::ssl) and [`ssl_distillation`](super::ssl_distillation). No `Default`: take
/// [`Ssl::paper_reading`] and change it, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "Ssl::paper_reading", deny_unknown_fields)]
pub struct Ssl {
    /// What p is.
    pub probability: Probability,
    /// Height and width of the window, in pixels, odd, 3 to 255.
    pub window: usize,
    /// Standard deviation of the Gaussian window, in pixels, finite, > 0.
    pub window_std: f64,
    /// How σ is taken.
    pub deviation: Deviation,
    /// What lies beyond the border.
    pub padding: Padding,
    /// C₄, finite, > 0.
    pub stabiliser: f64,
    /// ε in σ = √(variance + ε), finite, ≥ 0. Above 0 it bounds the slope of σ in regions that are nearly flat.
    pub variance_floor: f64,
    /// Which elements the structural part holds.
    pub mining: Mining,
    /// Whether the gradient runs through e too. Otherwise e only weighs the cross-entropy.
    pub differentiate_error: bool,
    /// The mean of the cross-entropy that λ weighs.
    pub entropy_mean: EntropyMean,
    /// λ, 0 to 1: the share of the plain cross-entropy. Where windows are flat e is 0 even if the class is wrong, so
    /// with λ = 0 nothing corrects a constant error.
    pub lambda: f64,
}

impl Ssl {
    /// The reading that formulas and re-implementations support best: sigmoid, Gaussian 3 × 3 of 1.5 pixels, SSIM's
    /// variance, replicated border, C₄ = 0.01, β = 0.1 of the batch, gradient through e, λ = 0.5.
    #[must_use]
    pub const fn paper_reading() -> Self {
        Self {
            probability: Probability::Sigmoid,
            window: 3,
            window_std: 1.5,
            deviation: Deviation::Window,
            padding: Padding::Replicate,
            stabiliser: 0.01,
            variance_floor: 1e-8,
            mining: Mining::Batch { share: 0.1 },
            differentiate_error: true,
            entropy_mean: EntropyMean::Pixels,
            lambda: 0.5,
        }
    }

    /// What e cannot exceed: 2·√((1 − w)/w), w the window's weight at its centre; with
    /// [`Deviation::WindowOfDeviations`] 2/√w. Infinite with [`Deviation::WholeMap`].
    #[must_use]
    pub fn greatest_error(&self) -> f64 {
        let centre = self.taps().get(self.window / 2).map_or(1.0, |tap| tap * tap);
        let reach: f64 = match self.deviation {
            Deviation::Window => ((1.0 - centre) / centre).sqrt(),
            Deviation::WindowOfDeviations => centre.sqrt().recip(),
            Deviation::WholeMap => f64::INFINITY,
        };
        // Below 1 the stabiliser, which is on both sides of the fraction, gives the greatest value.
        2.0 * reach.max(1.0)
    }

    /// The window along one axis, with sum 1.
    pub(super) fn taps(&self) -> Vec<f64> {
        let half = (self.window / 2) as f64;
        let taps = (0..self.window).map(|tap| (-0.5 * ((tap as f64 - half) / self.window_std).powi(2)).exp());
        let taps: Vec<f64> = taps.collect();
        let sum: f64 = taps.iter().sum();
        taps.into_iter().map(|tap| tap / sum).collect()
    }

    /// Refuses settings out of range.
    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if !(3..=255).contains(&self.window) || self.window.is_multiple_of(2) {
            return Err(check::param(op, "window", "an odd number from 3 to 255", self.window));
        }
        check::positive(op, "window_std", self.window_std)?;
        check::positive(op, "stabiliser", self.stabiliser)?;
        let at_least_0 = |argument, value: f64| {
            let fits = value.is_finite() && value >= 0.0;
            if fits { Ok(()) } else { Err(check::param(op, argument, "a finite number of at least 0", value)) }
        };
        let share = |argument, value: f64| {
            let fits = (0.0..=1.0).contains(&value);
            if fits { Ok(()) } else { Err(check::param(op, argument, "a number from 0 to 1", value)) }
        };
        at_least_0("variance_floor", self.variance_floor)?;
        match self.mining {
            Mining::Bound { .. } if self.deviation == Deviation::WholeMap => {
                let expected = "Batch, Map or Absolute: with WholeMap e has no bound";
                return Err(check::param(op, "mining", expected, "Bound"));
            }
            Mining::Batch { share: value } | Mining::Map { share: value } | Mining::Bound { share: value } => {
                share("mining", value)?;
            }
            Mining::Absolute { error } => at_least_0("mining", error)?,
        }
        share("lambda", self.lambda)
    }
}
