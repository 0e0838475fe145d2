//! The four loops of batch norm over one plane. Sums run in `LANES` partial sums of the element type and go to f64 after
//! each block.

use std::mem::MaybeUninit;

use crate::Float;
use crate::activation::gate::Prelu;
use crate::activation::{Activation, BLOCK, Element, Gate, Kernel, LANES, sum, vectorised, with_gate};

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

/// How a channel is normalised: z = (x − mean) · scale + offset.
#[derive(Clone, Copy)]
pub(super) struct Channel<T> {
    pub(super) mean: T,
    pub(super) scale: T,
    pub(super) offset: T,
}

impl<T: Float> Channel<T> {
    /// The normalised value. Both passes compute it here, so both see the same bits.
    #[inline(always)]
    fn of(self, x: T) -> T {
        (x - self.mean) * self.scale + self.offset
    }
}

/// What follows the normalisation of a channel: a PReLU of this slope, else the activation.
#[derive(Clone, Copy)]
pub(super) struct Next<T> {
    pub(super) activation: Activation,
    pub(super) slope: Option<T>,
}

/// Evaluates an expression with `gate` bound to what follows, compiled for each.
macro_rules! with_next {
    ($next:expr, $gate:ident => $body:expr) => {
        match $next.slope {
            Some(slope) => {
                let $gate = Prelu(slope);
                $body
            }
            None => with_gate!($next.activation, $gate => $body),
        }
    };
}

/// y = activation(z); every element of `y` is written.
pub(super) struct Normalise<'a, T> {
    pub(super) x: &'a [T],
    pub(super) channel: Channel<T>,
    pub(super) next: Next<T>,
    pub(super) y: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for Normalise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        with_next!(self.next, gate => {
            for (y, x) in self.y.iter_mut().zip(self.x) {
                y.write(gate.value(self.channel.of(*x)));
            }
        });
    }
}

/// Σ g and Σ g · (x − mean) with g taken through the activation, and the gradient of a PReLU's slope.
pub(super) struct GradientSums<'a, T> {
    pub(super) x: &'a [T],
    pub(super) g: &'a [T],
    pub(super) channel: Channel<T>,
    pub(super) next: Next<T>,
}

impl<T: Element> Kernel for GradientSums<'_, T> {
    type Output = [f64; 3];

    #[inline(always)]
    fn run(self) -> [f64; 3] {
        with_next!(self.next, gate => self.sums(gate))
    }
}

/// Partial sums of [`GradientSums`].
struct Partial<T> {
    sums: [T; LANES],
    products: [T; LANES],
    slopes: [T; LANES],
}

impl<T: Element> GradientSums<'_, T> {
    #[inline(always)]
    fn sums<G: Gate<T>>(self, gate: G) -> [f64; 3] {
        let mut total = [0.0; 3];
        for (x, g) in self.x.chunks(BLOCK).zip(self.g.chunks(BLOCK)) {
            let ((x, last_x), (g, last_g)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            let zeros = [T::ZERO; LANES];
            let mut partial = Partial { sums: zeros, products: zeros, slopes: zeros };
            for (x, g) in x.iter().zip(g) {
                for lane in 0..LANES {
                    self.add(gate, &mut partial, lane, [x[lane], g[lane]]);
                }
            }
            for lane in 0..last_x.len() {
                self.add(gate, &mut partial, lane, [last_x[lane], last_g[lane]]);
            }
            let Partial { sums, products, slopes } = partial;
            for (total, lanes) in total.iter_mut().zip([sums, products, slopes]) {
                *total += sum(&lanes);
            }
        }
        total
    }

    #[inline(always)]
    fn add<G: Gate<T>>(&self, gate: G, partial: &mut Partial<T>, lane: usize, [x, g]: [T; 2]) {
        let z = self.channel.of(x);
        let through = gate.gradient(z, gate.value(z), g);
        partial.sums[lane] += through;
        partial.products[lane] += through * (x - self.channel.mean);
        if G::LEARNS {
            partial.slopes[lane] += gate.slope_gradient(z, g);
        }
    }
}

/// dx = g · factor + (x − mean) · slope + shift with g taken through the activation; every element of `dx` is written.
pub(super) struct Gradient<'a, T> {
    pub(super) x: &'a [T],
    pub(super) g: &'a [T],
    pub(super) channel: Channel<T>,
    pub(super) factor: T,
    pub(super) slope: T,
    pub(super) shift: T,
    pub(super) next: Next<T>,
    pub(super) dx: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { channel, factor, slope, shift, .. } = self;
        with_next!(self.next, gate => {
            for ((dx, x), g) in self.dx.iter_mut().zip(self.x).zip(self.g) {
                let z = channel.of(*x);
                let g = gate.gradient(z, gate.value(z), *g);
                dx.write(g * factor + ((*x - channel.mean) * slope + shift));
            }
        });
    }
}
