//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// Polynomial decay with an optional linear warm-up.
///
/// Step `t` of `T` (t from 0): `lr · (1 − t/T)^power`; during the first `warmup_steps` also times `(t + 1)/(warmup_steps + 1)`.
/// Source of the decay: the DeepLab recipe that the distillation papers use, power 0.9, per iteration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The exponent; 0 keeps the rate constant.
    pub power: f64,
    /// Steps of linear warm-up, part of the whole.
    pub warmup_steps: u64,
}

impl Schedule {
    /// The factor on the base learning rate at `step` (from 0) of `steps`.
    #[must_use]
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let progress = step as f64 / steps.max(1) as f64;
        let decay = (1.0 - progress).max(0.0).powf(self.power);
        let warmup = if step < self.warmup_steps { (step + 1) as f64 / (self.warmup_steps + 1) as f64 } else { 1.0 };
        decay * warmup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poly_decay_is_the_formula_and_warmup_ends_where_it_should() {
        let poly = Schedule { power: 0.9, warmup_steps: 0 };
        assert_eq!(poly.factor(0, 100), 1.0);
        assert!((poly.factor(50, 100) - 0.5f64.powf(0.9)).abs() < 1e-15);
        assert_eq!(poly.factor(100, 100), 0.0);
        let warm = Schedule { power: 0.0, warmup_steps: 3 };
        let factors: Vec<f64> = (0..5).map(|step| warm.factor(step, 10)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }
}
