//! Mean, standard deviation and Student's interval of a few numbers.

use serde::{Deserialize, Serialize};

/// What a handful of measurements say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How many there are, at least 1.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with n − 1 in the denominator; absent for one.
    pub std: Option<f64>,
    /// The 95 % interval of the mean, mean ± t · std / √n with n − 1 degrees of freedom; absent for one.
    pub interval: Option<[f64; 2]>,
}

/// The share of all samples whose interval holds the true mean, if they are normally distributed.
const CONFIDENCE: f64 = 0.95;

impl Sample {
    /// The figures of these numbers; none for none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { n, mean, std: None, interval: None });
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (squares / (n - 1) as f64).sqrt();
        let reach = t_quantile(CONFIDENCE, n - 1) * std / (n as f64).sqrt();
        Some(Self { n, mean, std: Some(std), interval: Some([mean - reach, mean + reach]) })
    }
}

/// The t with |T| ≤ t for this share of Student's distribution; degrees ≥ 1, 0 < share < 1.
///
/// Found by halving; the share is known in closed form (Abramowitz and Stegun, Handbook of Mathematical Functions,
/// 26.7.3 and 26.7.4).
fn t_quantile(share: f64, degrees: usize) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while share_within(high, degrees) < share {
        high *= 2.0;
    }
    // Each turn halves the distance: after 60 it is below the last digit.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if share_within(middle, degrees) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The probability of |T| ≤ t with this many degrees of freedom.
fn share_within(t: f64, degrees: usize) -> f64 {
    let angle = (t / (degrees as f64).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    // The sum over the powers of the cosine: even ones for even degrees, odd ones for odd degrees.
    let even = degrees.is_multiple_of(2);
    let mut term = if even { 1.0 } else { cos };
    let mut sum = 0.0;
    let mut power = if even { 0 } else { 1 };
    while power + 2 <= degrees {
        sum += term;
        term *= cos * cos * (power + 1) as f64 / (power + 2) as f64;
        power += 2;
    }
    if even { sin * sum } else { (angle + sin * sum) * std::f64::consts::FRAC_2_PI }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Two-sided 95 %, as printed in tables of Student's distribution.
        for (degrees, expected) in [
            (1, 12.7062),
            (2, 4.3027),
            (3, 3.1824),
            (4, 2.7764),
            (5, 2.5706),
            (9, 2.2622),
            (10, 2.2281),
            (29, 2.0452),
            (30, 2.0423),
            (120, 1.9799),
        ] {
            let found = t_quantile(0.95, degrees);
            assert!((found - expected).abs() < 6e-5, "{degrees} degrees: {found}, expected {expected}");
        }
        assert!((t_quantile(0.99, 2) - 9.9248).abs() < 6e-5);
    }

    #[test]
    fn a_sample_has_the_figures_that_one_works_out_by_hand() {
        // 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 7; t of 2 degrees 4.302653, √(7/3) = 1.527525.
        let sample = Sample::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!((sample.n, sample.mean), (3, 3.0));
        assert!((sample.std.unwrap() - 7f64.sqrt()).abs() < 1e-12);
        let [low, high] = sample.interval.unwrap();
        assert!((low - (3.0 - 6.572_411)).abs() < 1e-5 && (high - (3.0 + 6.572_411)).abs() < 1e-5, "{low} {high}");
        // Two equal numbers leave no doubt, one number leaves all.
        assert_eq!(Sample::of(&[2.0, 2.0]).unwrap().interval, Some([2.0, 2.0]));
        let one = Sample::of(&[2.0]).unwrap();
        assert_eq!((one.mean, one.std, one.interval), (2.0, None, None));
        assert_eq!(Sample::of(&[]), None);
    }
}
