//! The four loops of batch norm over one plane. Sums run in `LANES` partial sums of the element type and go to f64 after
//! each block.

use crate::Float;
use crate::activation::{Activation, BLOCK, Kernel, LANES, passes_relu, passes_relu6, relu, relu6, sum, vectorised};

/// Count, mean and sum of squared distances from the mean.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) squares: f64,
}

impl Moments {
    /// The moments of both sets together.
    pub(super) fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let distance = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + distance * (other.count / count),
            squares: self.squares + other.squares + distance * distance * (self.count * other.count / count),
        }
    }

    /// The biased variance.
    pub(super) fn variance(self) -> f64 {
        self.squares / self.count
    }
}

/// The moments of a plane.
pub(super) fn moments<T: Float>(x: &[T]) -> Moments {
    x.chunks(BLOCK).map(|x| vectorised(BlockMoments { x })).fold(Moments::default(), Moments::merge)
}

/// Σ x, then Σ (x − centre) and Σ (x − centre)² about the mean that the first sum gives; the second sum puts right what
/// rounding took from the centre.
struct BlockMoments<'a, T> {
    x: &'a [T],
}

impl<T: Float> Kernel for BlockMoments<'_, T> {
    type Output = Moments;

    #[inline(always)]
    fn run(self) -> Moments {
        let count = self.x.len() as f64;
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        let mut sums = [T::ZERO; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += chunk[lane];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += *x;
        }
        let centre = T::from_f64(sum(&sums) / count);
        let (mut sums, mut squares) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for chunk in chunks {
            for lane in 0..LANES {
                let distance = chunk[lane] - centre;
                sums[lane] += distance;
                squares[lane] += distance * distance;
            }
        }
        for lane in 0..rest.len() {
            let distance = rest[lane] - centre;
            sums[lane] += distance;
            squares[lane] += distance * distance;
        }
        let (residue, squares) = (sum(&sums), sum(&squares));
        let squares = squares - residue * (residue / count);
        // `max` would turn a NaN into 0.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        Moments { count, mean: centre.to_f64() + residue / count, squares }
    }
}

/// y = activation((x − mean) · scale + offset).
pub(super) struct Normalise<'a, T> {
    pub(super) x: &'a [T],
    pub(super) mean: T,
    pub(super) scale: T,
    pub(super) offset: T,
    pub(super) activation: Activation,
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel for Normalise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.activation {
            Activation::Identity => self.map(|value| value),
            Activation::Relu => self.map(relu),
            Activation::Relu6 => self.map(relu6),
        }
    }
}

impl<T: Float> Normalise<'_, T> {
    #[inline(always)]
    fn map(self, activation: impl Fn(T) -> T) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = activation((*x - self.mean) * self.scale + self.offset);
        }
    }
}

/// Σ g and Σ g · (x − mean) with g masked by the activation.
pub(super) struct GradientSums<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a [T],
    pub(super) g: &'a [T],
    pub(super) mean: T,
    pub(super) activation: Activation,
}

impl<T: Float> Kernel for GradientSums<'_, T> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> (f64, f64) {
        match self.activation {
            Activation::Identity => self.sums(|_| true),
            Activation::Relu => self.sums(passes_relu),
            Activation::Relu6 => self.sums(passes_relu6),
        }
    }
}

impl<T: Float> GradientSums<'_, T> {
    #[inline(always)]
    fn sums(self, passes: impl Fn(T) -> bool) -> (f64, f64) {
        let mut total = (0.0, 0.0);
        for ((x, y), g) in self.x.chunks(BLOCK).zip(self.y.chunks(BLOCK)).zip(self.g.chunks(BLOCK)) {
            let ((x, last_x), (y, last_y), (g, last_g)) =
                (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            let (mut sums, mut products) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            for ((x, y), g) in x.iter().zip(y).zip(g) {
                for lane in 0..LANES {
                    let g = if passes(y[lane]) { g[lane] } else { T::ZERO };
                    sums[lane] += g;
                    products[lane] += g * (x[lane] - self.mean);
                }
            }
            for lane in 0..last_x.len() {
                let g = if passes(last_y[lane]) { last_g[lane] } else { T::ZERO };
                sums[lane] += g;
                products[lane] += g * (last_x[lane] - self.mean);
            }
            total = (total.0 + sum(&sums), total.1 + sum(&products));
        }
        total
    }
}

/// dx = g · scale + (x − mean) · slope + offset with g masked by the activation.
pub(super) struct Gradient<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a [T],
    pub(super) g: &'a [T],
    pub(super) mean: T,
    pub(super) scale: T,
    pub(super) slope: T,
    pub(super) offset: T,
    pub(super) activation: Activation,
    pub(super) dx: &'a mut [T],
}

impl<T: Float> Kernel for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.activation {
            Activation::Identity => self.map(|_| true),
            Activation::Relu => self.map(passes_relu),
            Activation::Relu6 => self.map(passes_relu6),
        }
    }
}

impl<T: Float> Gradient<'_, T> {
    #[inline(always)]
    fn map(self, passes: impl Fn(T) -> bool) {
        for (((dx, x), y), g) in self.dx.iter_mut().zip(self.x).zip(self.y).zip(self.g) {
            let g = if passes(*y) { *g } else { T::ZERO };
            *dx = g * self.scale + ((*x - self.mean) * self.slope + self.offset);
        }
    }
}
