//! Local mean and standard deviation of a map, the standardised map (x − μ + C₄) / (σ + C₄), and its adjoint.

use super::probability::Sizes;
use super::{Deviation, Padding, Ssl};

/// What may be left of g∗x² − μ² in a flat window, relative to g∗x²: some twenty roundings.
const ROUNDING: f64 = 1e-14;

/// How maps of one size are standardised.
pub(super) struct Local {
    height: usize,
    width: usize,
    taps: Vec<f64>,
    padding: Padding,
    deviation: Deviation,
    stabiliser: f64,
    variance_floor: f64,
}

/// A map with what its adjoint needs, each row-major.
pub(super) struct Standardised {
    pub(super) field: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
    std: Vec<f64>,
}

impl Local {
    pub(super) fn new(sizes: Sizes, cfg: &Ssl) -> Self {
        Self {
            height: sizes.height,
            width: sizes.width,
            taps: cfg.taps(),
            padding: cfg.padding,
            deviation: cfg.deviation,
            stabiliser: cfg.stabiliser,
            variance_floor: cfg.variance_floor,
        }
    }

    /// Whether an element has a whole window, where that is asked for.
    pub(super) fn has_window(&self, position: usize) -> bool {
        if self.padding != Padding::Valid || self.deviation == Deviation::WholeMap {
            return true;
        }
        let (row, column, half) = (position / self.width, position % self.width, self.taps.len() / 2);
        row >= half && row + half < self.height && column >= half && column + half < self.width
    }

    /// Standardises a map that is 0 at pixels that do not count.
    pub(super) fn standardise(&self, x: &[f64], counted: &[bool]) -> Standardised {
        let (mean, variance) = match self.deviation {
            Deviation::Window => {
                let mean = self.blur(x);
                let mut variance = self.blur(&x.iter().map(|x| x * x).collect::<Vec<_>>());
                for (variance, mean) in variance.iter_mut().zip(&mean) {
                    let rounding = ROUNDING * *variance;
                    *variance -= mean * mean;
                    // A flat window has none; the root of what rounding leaves would be far above rounding.
                    *variance = if *variance < rounding { 0.0 } else { *variance };
                }
                (mean, variance)
            }
            Deviation::WindowOfDeviations => {
                let mean = self.blur(x);
                let squares: Vec<f64> = x.iter().zip(&mean).map(|(x, mean)| (x - mean) * (x - mean)).collect();
                let variance = self.blur(&squares);
                (mean, variance)
            }
            Deviation::WholeMap => {
                let pixels = counted.iter().filter(|&&counted| counted).count().max(1) as f64;
                let mean = x.iter().sum::<f64>() / pixels;
                let squares = x.iter().zip(counted).map(|(x, &counted)| if counted { (x - mean).powi(2) } else { 0.0 });
                let variance = squares.sum::<f64>() / pixels;
                (vec![mean; x.len()], vec![variance; x.len()])
            }
        };
        let std: Vec<f64> = variance.iter().map(|variance| (variance + self.variance_floor).sqrt()).collect();
        let field = (x.iter().zip(&mean).zip(&std))
            .map(|((x, mean), std)| (x - mean + self.stabiliser) / (std + self.stabiliser))
            .collect();
        Standardised { field, mean, variance, std }
    }

    /// From the gradient of the standardised map to that of the map. `upstream` is 0 at pixels that do not count.
    pub(super) fn adjoint(&self, x: &[f64], of: &Standardised, counted: &[bool], upstream: &[f64]) -> Vec<f64> {
        let mut to_x = Vec::with_capacity(x.len());
        let mut to_mean = Vec::with_capacity(x.len());
        let mut to_variance = Vec::with_capacity(x.len());
        for (position, upstream) in upstream.iter().enumerate() {
            let direct = upstream / (of.std[position] + self.stabiliser);
            let to_std = -direct * of.field[position];
            to_x.push(direct);
            to_mean.push(-direct);
            // A variance of 0 is a minimum: no slope.
            let flat = of.variance[position] == 0.0;
            to_variance.push(if flat { 0.0 } else { to_std / (2.0 * of.std[position]) });
        }
        match self.deviation {
            Deviation::Window => {
                for ((to_mean, to_variance), mean) in to_mean.iter_mut().zip(&to_variance).zip(&of.mean) {
                    *to_mean -= 2.0 * mean * to_variance;
                }
                let of_squares = self.blur_adjoint(&to_variance);
                to_x.iter_mut().zip(&of_squares).zip(x).for_each(|((to_x, slope), x)| *to_x += 2.0 * x * slope);
            }
            Deviation::WindowOfDeviations => {
                let of_squares = self.blur_adjoint(&to_variance);
                for (position, slope) in of_squares.iter().enumerate() {
                    let slope = 2.0 * (x[position] - of.mean[position]) * slope;
                    to_x[position] += slope;
                    to_mean[position] -= slope;
                }
            }
            Deviation::WholeMap => {
                let pixels = counted.iter().filter(|&&counted| counted).count().max(1) as f64;
                let (to_mean, to_variance): (f64, f64) = (to_mean.iter().sum(), to_variance.iter().sum());
                for (position, to_x) in to_x.iter_mut().enumerate().filter(|(position, _)| counted[*position]) {
                    *to_x += (to_mean + 2.0 * (x[position] - of.mean[position]) * to_variance) / pixels;
                }
                return to_x;
            }
        }
        to_x.iter_mut().zip(self.blur_adjoint(&to_mean)).for_each(|(to_x, slope)| *to_x += slope);
        to_x
    }

    /// g ∗ x.
    fn blur(&self, x: &[f64]) -> Vec<f64> {
        let mut rows = vec![0.0; x.len()];
        self.row_pairs(|row, neighbour, weight| {
            let (to, from) = (row * self.width, neighbour * self.width);
            add_scaled(&mut rows[to..to + self.width], &x[from..from + self.width], weight);
        });
        let mut blurred = vec![0.0; x.len()];
        for (blurred, row) in blurred.chunks_mut(self.width).zip(rows.chunks(self.width)) {
            self.column_ranges(|columns, offset, clamped, weight| match clamped {
                None => add_scaled(&mut blurred[columns.clone()], &row[shifted(&columns, offset)], weight),
                Some(edge) => blurred[columns].iter_mut().for_each(|value| *value += weight * row[edge]),
            });
        }
        blurred
    }

    /// The transpose of [`Self::blur`].
    fn blur_adjoint(&self, upstream: &[f64]) -> Vec<f64> {
        let mut rows = vec![0.0; upstream.len()];
        for (row, upstream) in rows.chunks_mut(self.width).zip(upstream.chunks(self.width)) {
            self.column_ranges(|columns, offset, clamped, weight| match clamped {
                None => add_scaled(&mut row[shifted(&columns, offset)], &upstream[columns.clone()], weight),
                Some(edge) => row[edge] += weight * upstream[columns].iter().sum::<f64>(),
            });
        }
        let mut slopes = vec![0.0; upstream.len()];
        self.row_pairs(|row, neighbour, weight| {
            let (to, from) = (neighbour * self.width, row * self.width);
            add_scaled(&mut slopes[to..to + self.width], &rows[from..from + self.width], weight);
        });
        slopes
    }

    /// Calls `f` with each row, each row of its window, and the weight.
    fn row_pairs(&self, mut f: impl FnMut(usize, usize, f64)) {
        let half = self.taps.len() / 2;
        for row in 0..self.height {
            for (tap, &weight) in self.taps.iter().enumerate() {
                let inside = (row + tap).checked_sub(half).filter(|&neighbour| neighbour < self.height);
                let clamped = if row + tap < half { 0 } else { self.height - 1 };
                match inside {
                    Some(neighbour) => f(row, neighbour, weight),
                    None if self.padding == Padding::Zero => {}
                    None => f(row, clamped, weight),
                }
            }
        }
    }

    /// Calls `f` with runs of columns, their offset, the edge that stands for columns outside, and the weight.
    fn column_ranges(&self, mut f: impl FnMut(std::ops::Range<usize>, isize, Option<usize>, f64)) {
        let (width, half) = (self.width, self.taps.len() / 2);
        for (tap, &weight) in self.taps.iter().enumerate() {
            let from = half.saturating_sub(tap).min(width);
            let to = width.saturating_sub(tap.saturating_sub(half)).max(from);
            f(from..to, tap as isize - half as isize, None, weight);
            if self.padding != Padding::Zero {
                f(0..from, 0, Some(0), weight);
                f(to..width, 0, Some(width - 1), weight);
            }
        }
    }
}

fn shifted(columns: &std::ops::Range<usize>, offset: isize) -> std::ops::Range<usize> {
    // An empty run may lie at the edge, where its shift would leave the row.
    if columns.is_empty() {
        return 0..0;
    }
    columns.start.saturating_add_signed(offset)..columns.end.saturating_add_signed(offset)
}

fn add_scaled(sum: &mut [f64], x: &[f64], weight: f64) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += weight * x;
    }
}
