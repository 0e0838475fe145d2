//! The one-dimensional transforms of F(2,3), F(4,3) and of pairs.
//!
//! F(m,3) multiplies polynomials by their values at m + 1 points and at infinity. With the filter g₀, g₁, g₂ and the
//! inputs d₀ … d₍m+1₎ the m correlations yᵢ = Σⱼ gⱼ dᵢ₊ⱼ are y = Aᵀ [(G g) ⊙ (Bᵀ d)]. For the points 0, ±a, ±b, ∞:
//!
//! ```text
//! row of G     point p: (1, p, p²) / N(p),  N(0) = a²b²,  N(±a) = 2a²(a² − b²),  N(±b) = 2b²(b² − a²);   ∞: (0, 0, 1)
//! row of Bᵀ    0: (a²b², 0, −(a² + b²), 0, 1, 0);   ±a: (0, ∓ab², −b², ±a, 1, 0);   ±b: (0, ∓ba², −a², ±b, 1, 0);
//!              ∞: (0, a²b², 0, −(a² + b²), 0, 1)
//! row i of Aᵀ  (0ⁱ, aⁱ, (−a)ⁱ, bⁱ, (−b)ⁱ, 1 where i = m − 1)
//! ```
//!
//! a = 5/8, b = 3/2 instead of the usual 1, 2 costs nothing and makes the rounding error of F(4,3) two to five times
//! smaller. F(2,3) has the points 0, ±1, ∞, with signs chosen so that it needs additions only. Rows of ±p share their
//! even and their odd part.
//!
//! A *pair* is all that there is of the inputs d₀, d₁ of a phase whose map has two pixels or one, with zeros around: of the
//! taps only some meet a pixel, and y₀ = g₁ d₀ + g₂ d₁, y₁ = g₀ d₀ + g₁ d₁ take three products, F(2,2) with filter and
//! inputs exchanged:
//!
//! ```text
//! m = (g₁, g₂ − g₁, g₀ − g₁) ⊙ (d₀ + d₁, d₁, d₀),   y₀ = m₀ + m₁,   y₁ = m₀ + m₂
//! ```

use crate::lanes::Lanes;

/// A linear map of `IN` vectors to `OUT` vectors, lane by lane.
pub(super) trait Linear<const IN: usize, const OUT: usize> {
    /// Applies the map.
    fn apply<L: Lanes>(values: [L; IN]) -> [L; OUT];
}

/// F(M×M, 3×3) with tiles of IN×IN inputs and A×A products.
pub(super) trait Variant<const M: usize, const IN: usize, const A: usize>: Send + Sync + 'static {
    /// Bᵀ: inputs of a tile.
    type Input: Linear<IN, A>;
    /// G: a filter.
    type Filter: Linear<3, A>;
    /// Aᵀ: products to outputs.
    type Output: Linear<A, M>;
    /// A, the adjoint of `Output`: gradients of the outputs.
    type OutputGradient: Linear<M, A>;
    /// Gᵀ, the adjoint of `Filter`: back to the gradient of a filter.
    type FilterGradient: Linear<A, 3>;
}

/// F(2×2, 3×3): 16 multiplications for 36; as exact as the direct sum.
pub(super) struct F2;
/// F(4×4, 3×3): 36 multiplications for 144.
pub(super) struct F4;
/// Pairs of pixels: 9 multiplications for 36, of which 16 meet a pixel; as exact as the direct sum.
pub(super) struct Pairs;

/// Bᵀ of [`F2`].
pub(super) struct Input2;
/// G of [`F2`].
pub(super) struct Filter2;
/// Aᵀ of [`F2`].
pub(super) struct Output2;
/// A of [`F2`].
pub(super) struct OutputGradient2;
/// Gᵀ of [`F2`].
pub(super) struct FilterGradient2;
/// Bᵀ of [`F4`].
pub(super) struct Input4;
/// G of [`F4`].
pub(super) struct Filter4;
/// Aᵀ of [`F4`].
pub(super) struct Output4;
/// A of [`F4`].
pub(super) struct OutputGradient4;
/// Gᵀ of [`F4`].
pub(super) struct FilterGradient4;

/// Bᵀ of [`Pairs`].
pub(super) struct InputPair;
/// G of [`Pairs`].
pub(super) struct FilterPair;
/// Aᵀ of [`Pairs`].
pub(super) struct OutputPair;
/// A of [`Pairs`].
pub(super) struct OutputGradientPair;
/// Gᵀ of [`Pairs`].
pub(super) struct FilterGradientPair;

impl Variant<2, 4, 4> for F2 {
    type Input = Input2;
    type Filter = Filter2;
    type Output = Output2;
    type OutputGradient = OutputGradient2;
    type FilterGradient = FilterGradient2;
}

impl Variant<4, 6, 6> for F4 {
    type Input = Input4;
    type Filter = Filter4;
    type Output = Output4;
    type OutputGradient = OutputGradient4;
    type FilterGradient = FilterGradient4;
}

impl Variant<2, 2, 3> for Pairs {
    type Input = InputPair;
    type Filter = FilterPair;
    type Output = OutputPair;
    type OutputGradient = OutputGradientPair;
    type FilterGradient = FilterGradientPair;
}

impl Linear<2, 3> for InputPair {
    #[inline(always)]
    fn apply<L: Lanes>([d0, d1]: [L; 2]) -> [L; 3] {
        [d0.add(d1), d1, d0]
    }
}

impl Linear<3, 3> for FilterPair {
    #[inline(always)]
    fn apply<L: Lanes>([g0, g1, g2]: [L; 3]) -> [L; 3] {
        [g1, g2.sub(g1), g0.sub(g1)]
    }
}

impl Linear<3, 2> for OutputPair {
    #[inline(always)]
    fn apply<L: Lanes>([m0, m1, m2]: [L; 3]) -> [L; 2] {
        [m0.add(m1), m0.add(m2)]
    }
}

impl Linear<2, 3> for OutputGradientPair {
    #[inline(always)]
    fn apply<L: Lanes>([y0, y1]: [L; 2]) -> [L; 3] {
        [y0.add(y1), y0, y1]
    }
}

impl Linear<3, 3> for FilterGradientPair {
    #[inline(always)]
    fn apply<L: Lanes>([u0, u1, u2]: [L; 3]) -> [L; 3] {
        [u2, u0.sub(u1).sub(u2), u1]
    }
}

impl Linear<4, 4> for Input2 {
    #[inline(always)]
    fn apply<L: Lanes>([d0, d1, d2, d3]: [L; 4]) -> [L; 4] {
        [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3)]
    }
}

impl Linear<3, 4> for Filter2 {
    #[inline(always)]
    fn apply<L: Lanes>([g0, g1, g2]: [L; 3]) -> [L; 4] {
        let even = g0.add(g2).scale(0.5);
        [g0, even.plus(0.5, g1), even.plus(-0.5, g1), g2]
    }
}

impl Linear<4, 2> for Output2 {
    #[inline(always)]
    fn apply<L: Lanes>([m0, m1, m2, m3]: [L; 4]) -> [L; 2] {
        [m0.add(m1).add(m2), m1.sub(m2).sub(m3)]
    }
}

impl Linear<2, 4> for OutputGradient2 {
    #[inline(always)]
    fn apply<L: Lanes>([y0, y1]: [L; 2]) -> [L; 4] {
        [y0, y0.add(y1), y0.sub(y1), L::zero().sub(y1)]
    }
}

impl Linear<4, 3> for FilterGradient2 {
    #[inline(always)]
    fn apply<L: Lanes>([u0, u1, u2, u3]: [L; 4]) -> [L; 3] {
        let even = u1.add(u2).scale(0.5);
        [u0.add(even), u1.sub(u2).scale(0.5), even.add(u3)]
    }
}

/// The points of F(4,3) and their powers.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// 1 / N of the points 0, ±a, ±b; rounded once from f64.
const INVERSE_N_0: f32 = (1.0 / (0.625f64 * 0.625 * 1.5 * 1.5)) as f32;
const INVERSE_N_A: f32 = (1.0 / (2.0 * 0.625f64 * 0.625 * (0.625 * 0.625 - 1.5 * 1.5))) as f32;
const INVERSE_N_B: f32 = (1.0 / (2.0 * 1.5f64 * 1.5 * (1.5 * 1.5 - 0.625 * 0.625))) as f32;

impl Linear<6, 6> for Input4 {
    #[inline(always)]
    fn apply<L: Lanes>([d0, d1, d2, d3, d4, d5]: [L; 6]) -> [L; 6] {
        let (even_a, odd_a) = (d4.plus(-B2, d2), d3.plus(-B2, d1));
        let (even_b, odd_b) = (d4.plus(-A2, d2), d3.plus(-A2, d1));
        [
            d4.plus(-(A2 + B2), d2).plus(A2 * B2, d0),
            even_a.plus(A, odd_a),
            even_a.plus(-A, odd_a),
            even_b.plus(B, odd_b),
            even_b.plus(-B, odd_b),
            d5.plus(-(A2 + B2), d3).plus(A2 * B2, d1),
        ]
    }
}

impl Linear<3, 6> for Filter4 {
    #[inline(always)]
    fn apply<L: Lanes>([g0, g1, g2]: [L; 3]) -> [L; 6] {
        let (even_a, odd_a) = (g0.plus(A2, g2).scale(INVERSE_N_A), g1.scale(INVERSE_N_A * A));
        let (even_b, odd_b) = (g0.plus(B2, g2).scale(INVERSE_N_B), g1.scale(INVERSE_N_B * B));
        [g0.scale(INVERSE_N_0), even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g2]
    }
}

impl Linear<6, 4> for Output4 {
    #[inline(always)]
    fn apply<L: Lanes>([m0, m1, m2, m3, m4, m5]: [L; 6]) -> [L; 4] {
        let (even_a, odd_a) = (m1.add(m2), m1.sub(m2));
        let (even_b, odd_b) = (m3.add(m4), m3.sub(m4));
        [
            m0.add(even_a.add(even_b)),
            odd_a.scale(A).plus(B, odd_b),
            even_a.scale(A2).plus(B2, even_b),
            m5.plus(A * A2, odd_a).plus(B * B2, odd_b),
        ]
    }
}

impl Linear<4, 6> for OutputGradient4 {
    #[inline(always)]
    fn apply<L: Lanes>([y0, y1, y2, y3]: [L; 4]) -> [L; 6] {
        let (even_a, odd_a) = (y0.plus(A2, y2), y1.plus(A2, y3).scale(A));
        let (even_b, odd_b) = (y0.plus(B2, y2), y1.plus(B2, y3).scale(B));
        [y0, even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), y3]
    }
}

impl Linear<6, 3> for FilterGradient4 {
    #[inline(always)]
    fn apply<L: Lanes>([u0, u1, u2, u3, u4, u5]: [L; 6]) -> [L; 3] {
        let (even_a, odd_a) = (u1.add(u2).scale(INVERSE_N_A), u1.sub(u2).scale(INVERSE_N_A * A));
        let (even_b, odd_b) = (u3.add(u4).scale(INVERSE_N_B), u3.sub(u4).scale(INVERSE_N_B * B));
        [even_a.add(even_b).plus(INVERSE_N_0, u0), odd_a.add(odd_b), u5.plus(B2, even_b).plus(A2, even_a)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Vector = [f32; 8];

    fn numbers<const COUNT: usize>(start: usize) -> [Vector; COUNT] {
        std::array::from_fn(|i| std::array::from_fn(|lane| ((start + 5 * i + 3 * lane) * 7 % 11) as f32 - 5.0))
    }

    fn dot<const COUNT: usize>(left: [Vector; COUNT], right: [Vector; COUNT], lane: usize) -> f64 {
        left.iter().zip(right).map(|(a, b)| f64::from(a[lane]) * f64::from(b[lane])).sum()
    }

    /// The first input of a tile lies `before` places before its first output.
    fn check<V: Variant<M, IN, A>, const M: usize, const IN: usize, const A: usize>(before: usize) {
        for start in 0..20 {
            let (inputs, filter) = (numbers::<IN>(start), numbers::<3>(3 * start + 1));
            let (u, v) = (V::Filter::apply(filter), V::Input::apply(inputs));
            let products: [Vector; A] = std::array::from_fn(|i| u[i].mul(v[i]));
            let outputs = V::Output::apply(products);
            for lane in 0..8 {
                for i in 0..M {
                    let input = |at: usize| inputs.get((at + before).wrapping_sub(1)).map_or(0.0, |input| input[lane]);
                    let expected: f32 = (0..3).map(|j| filter[j][lane] * input(i + j)).sum();
                    assert!((outputs[i][lane] - expected).abs() < 2e-4, "output {i}: {} {expected}", outputs[i][lane]);
                }
                let (gradient, other) = (numbers::<M>(start + 2), numbers::<A>(start + 4));
                let forwards = dot(V::Output::apply(other), gradient, lane);
                let adjoint = dot(other, V::OutputGradient::apply(gradient), lane);
                assert!((forwards - adjoint).abs() < 1e-3, "output adjoint: {forwards} {adjoint}");
                let forwards = dot(u, other, lane);
                let adjoint = dot(filter, V::FilterGradient::apply(other), lane);
                assert!((forwards - adjoint).abs() < 1e-3, "filter adjoint: {forwards} {adjoint}");
            }
        }
    }

    #[test]
    fn the_transforms_of_f2_compute_two_correlations_and_their_adjoints() {
        check::<F2, 2, 4, 4>(1);
    }

    #[test]
    fn the_transforms_of_f4_compute_four_correlations_and_their_adjoints() {
        check::<F4, 4, 6, 6>(1);
    }

    #[test]
    fn the_transforms_of_pairs_compute_two_correlations_and_their_adjoints() {
        check::<Pairs, 2, 2, 3>(0);
    }
}
