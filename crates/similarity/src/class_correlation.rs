//! How class maps correlate, as one node: products of softened maps with each other over the positions.
//!
//! q = softmax(z / τ);   G_ij = Σ_p q_ip · q_jp;   M = G, or as cosines M_ij = G_ij / √(G_ii · G_jj)
//!
//! The lengths are on the diagonal of G, so unit maps are never written down. With D = ∂L/∂M + (∂L/∂M)ᵀ:
//! ∂L/∂q_ip = Σ_j A_ij · q_jp,   A = D, or for cosines A_ij = D_ij / √(G_ii · G_jj) − [i = j] · Σ_k D_ik · M_ik / G_ii
//! ∂L/∂z = q · (∂L/∂q − Σ q · ∂L/∂q) / τ, the sum over the axis of the softmax. q is 0 at ignored positions, and so is this.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::Result;
use crate::csd::SoftmaxAxis;
use crate::task::node::with_values;

/// Positions whose products are summed in the maps' own type before they are added in f64; some maps of this length
/// fit the nearest cache.
const TILE: usize = 512;
/// Sums that one product keeps side by side.
const LANES: usize = 8;

/// What stands between logits and M.
pub(crate) struct ClassMaps {
    /// q, `[N,K,H,W]` contiguous, without a graph, 0 at ignored positions.
    pub(crate) probs: Tensor,
    /// Its softmax.
    pub(crate) axis: SoftmaxAxis,
    /// τ.
    pub(crate) temperature: f64,
    /// For cosines: the norm up to which a map is absent; its row and column of M are 0 and pass no gradient on.
    pub(crate) cosines: Option<f64>,
}

impl ClassMaps {
    /// M `[N,K,K]` of these maps of `logits`.
    pub(crate) fn correlation(self, logits: &Tensor) -> Result<Tensor> {
        Ok(match logits.dtype() {
            DType::F32 => logits.apply_op1(Correlation::<f32>::of(self)?)?,
            _ => logits.apply_op1(Correlation::<f64>::of(self)?)?,
        })
    }
}

struct Correlation<T> {
    maps: ClassMaps,
    sizes: Sizes,
    /// G of each image, `[N,K,K]`.
    products: Vec<f64>,
    element: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    classes: usize,
    positions: usize,
}

impl<T: WithDType> Correlation<T> {
    fn of(maps: ClassMaps) -> Result<Self> {
        let (images, classes, h, w) = maps.probs.dims4()?;
        let sizes = Sizes { images, classes, positions: h * w };
        let products = with_values(&maps.probs, |probs: &[T]| products(probs, sizes))?;
        Ok(Self { maps, sizes, products, element: std::marker::PhantomData })
    }

    /// 1/√G_ii of each map of an image; 0 where it is absent.
    fn inverse_norms(&self, products: &[f64], floor: f64) -> Vec<f64> {
        let classes = self.sizes.classes;
        let inverse = |index: usize| {
            let squared = products[index * classes + index];
            if squared > floor * floor { 1.0 / squared.sqrt() } else { 0.0 }
        };
        (0..classes).map(inverse).collect()
    }

    /// M of each image.
    fn matrices(&self) -> Vec<f64> {
        let Some(floor) = self.maps.cosines else { return self.products.clone() };
        let classes = self.sizes.classes;
        let image = |products: &[f64]| {
            let inverse = self.inverse_norms(products, floor);
            let cosine = |(at, &product): (usize, &f64)| product * inverse[at / classes] * inverse[at % classes];
            products.iter().enumerate().map(cosine).collect::<Vec<_>>()
        };
        self.products.chunks_exact(classes * classes).flat_map(image).collect()
    }

    /// A of each image, from ∂L/∂M.
    fn factors(&self, upstream: &[T]) -> Vec<T> {
        let classes = self.sizes.classes;
        let image = |(products, upstream): (&[f64], &[T])| {
            let both = |i: usize, j: usize| upstream[i * classes + j].to_f64() + upstream[j * classes + i].to_f64();
            let mut factors: Vec<f64> = (0..classes * classes).map(|at| both(at / classes, at % classes)).collect();
            if let Some(floor) = self.maps.cosines {
                let inverse = self.inverse_norms(products, floor);
                for (i, row) in factors.chunks_exact_mut(classes).enumerate() {
                    for (j, factor) in row.iter_mut().enumerate() {
                        *factor *= inverse[i] * inverse[j];
                    }
                    let along: f64 =
                        row.iter().zip(&products[i * classes..]).map(|(factor, product)| factor * product).sum();
                    row[i] -= along * inverse[i] * inverse[i];
                }
            }
            factors.into_iter().map(T::from_f64).collect::<Vec<_>>()
        };
        self.products
            .chunks_exact(classes * classes)
            .zip(upstream.chunks_exact(classes * classes))
            .flat_map(image)
            .collect()
    }

    /// ∂L/∂z.
    fn gradient(&self, probs: &[T], upstream: &[T]) -> Vec<T> {
        let Sizes { images, classes, positions } = self.sizes;
        let factors = self.factors(upstream);
        let image_of = |image: usize| &probs[image * classes * positions..][..classes * positions];
        // ∂L/∂q
        let mut gradient = vec![T::zero(); probs.len()];
        gradient.par_chunks_mut(positions).enumerate().for_each(|(plane, gradient)| {
            let factors = &factors[plane * classes..][..classes];
            for (tile, gradient) in gradient.chunks_mut(TILE).enumerate() {
                for (&factor, probs) in factors.iter().zip(image_of(plane / classes).chunks_exact(positions)) {
                    for (sum, &prob) in gradient.iter_mut().zip(&probs[tile * TILE..]) {
                        *sum += factor * prob;
                    }
                }
            }
        });
        let scale = T::from_f64(1.0 / self.maps.temperature);
        let planes = gradient.par_chunks_mut(positions).zip(probs.par_chunks(positions));
        match self.maps.axis {
            SoftmaxAxis::Positions => planes.for_each(|(gradient, probs)| {
                let sum = T::from_f64(dot(gradient, probs));
                for (slope, &prob) in gradient.iter_mut().zip(probs) {
                    *slope = prob * (*slope - sum) * scale;
                }
            }),
            SoftmaxAxis::Classes => {
                let mut sums = vec![T::zero(); images * positions];
                sums.par_chunks_mut(positions).zip(planes.chunks(classes)).for_each(|(sums, planes)| {
                    let mut planes = planes;
                    for (gradient, probs) in &planes {
                        for (sum, (&slope, &prob)) in sums.iter_mut().zip(gradient.iter().zip(*probs)) {
                            *sum += slope * prob;
                        }
                    }
                    for (gradient, probs) in &mut planes {
                        for ((slope, &prob), &sum) in gradient.iter_mut().zip(*probs).zip(&*sums) {
                            *slope = prob * (*slope - sum) * scale;
                        }
                    }
                });
            }
        }
        gradient
    }
}

/// G of each image, `[N,K,K]`.
fn products<T: WithDType>(probs: &[T], sizes: Sizes) -> Vec<f64> {
    let Sizes { images, classes, positions } = sizes;
    let tiles = positions.div_ceil(TILE);
    let of_tile = |task: usize| {
        let (image, from) = (task / tiles, task % tiles * TILE);
        let length = TILE.min(positions - from);
        let plane = |class: usize| &probs[(image * classes + class) * positions + from..][..length];
        let mut products = vec![0.0; classes * classes];
        for i in 0..classes {
            for j in 0..=i {
                let product = dot(plane(i), plane(j));
                products[i * classes + j] = product;
                products[j * classes + i] = product;
            }
        }
        products
    };
    // Tiles are a function of the sizes and are added in their order: the same bits for any number of threads.
    let of_tiles: Vec<Vec<f64>> = (0..images * tiles).into_par_iter().map(of_tile).collect();
    let mut sums = vec![0.0; images * classes * classes];
    for (task, products) in of_tiles.iter().enumerate() {
        for (sum, product) in sums[task / tiles * classes * classes..].iter_mut().zip(products) {
            *sum += product;
        }
    }
    sums
}

/// The sum of products of two slices of one length.
fn dot<T: WithDType>(left: &[T], right: &[T]) -> f64 {
    let mut lanes = [T::zero(); LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(&a, &b)| (a * b).to_f64()).sum();
    for (left, right) in left.zip(right) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(left.iter().zip(right)) {
            *lane += a * b;
        }
    }
    lanes.iter().map(|lane| lane.to_f64()).sum::<f64>() + rest
}

impl<T: WithDType> CustomOp1 for Correlation<T> {
    fn name(&self) -> &'static str {
        "category_correlation"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let matrices = self.matrices().into_iter().map(T::from_f64).collect();
        let Sizes { images, classes, .. } = self.sizes;
        Ok((T::to_cpu_storage_owned(matrices), (images, classes, classes).into()))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = with_values(&upstream.contiguous()?, |upstream: &[T]| {
            with_values(&self.maps.probs, |probs: &[T]| self.gradient(probs, upstream))
        })??;
        Tensor::from_vec(gradient, logits.shape(), logits.device()).map(Some)
    }
}
