//! Products of maps with each other over the positions: one node, one pass over the maps each way.
//!
//! G_ij = Σ_p m_p · q_ip · q_jp;   M = G, or as cosines M_ij = G_ij / √(G_ii · G_jj)
//!
//! The lengths are on the diagonal of G, so unit maps are never written down. With D = ∂L/∂M + (∂L/∂M)ᵀ:
//! ∂L/∂q_ip = m_p · Σ_j A_ij · q_jp,   A = D, or for cosines A_ij = D_ij / √(G_ii · G_jj) − [i = j] · Σ_k D_ik · M_ik / G_ii

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType, bail};
use dsd_ops::check;
use rayon::prelude::*;

use crate::Result;
use crate::task::node::with_values;

/// Positions whose products are summed in the maps' own type before they are added in f64; some maps of this length
/// fit the nearest cache.
const TILE: usize = 512;
/// Sums that one product keeps side by side.
const LANES: usize = 8;

/// `[N,K,H,W]` contiguous maps → `[N,K,K]`. `mask`: `[N,1,H,W]` of ones and zeros, in the type of the maps. With
/// `cosines`, the norm up to which a map is absent: its row and column are 0 and pass no gradient on.
pub(crate) fn gram(maps: &Tensor, mask: Option<&Tensor>, cosines: Option<f64>) -> Result<Tensor> {
    let maps = maps.contiguous()?;
    check::nchw("gram", "maps", &maps)?;
    let mask = mask.map(Tensor::contiguous).transpose()?;
    Ok(match maps.dtype() {
        candle_core::DType::F32 => maps.apply_op1(Gram::<f32>::of(&maps, mask.as_ref(), cosines)?)?,
        _ => maps.apply_op1(Gram::<f64>::of(&maps, mask.as_ref(), cosines)?)?,
    })
}

/// What the node keeps beside the maps, which the graph keeps.
struct Gram<T> {
    sizes: Sizes,
    mask: Option<Vec<T>>,
    /// G of each image, `[N,K,K]`.
    products: Vec<f64>,
    cosines: Option<f64>,
}

#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    maps: usize,
    positions: usize,
}

impl<T: WithDType> Gram<T> {
    fn of(maps: &Tensor, mask: Option<&Tensor>, cosines: Option<f64>) -> Result<Self> {
        let (n, k, h, w) = maps.dims4()?;
        let sizes = Sizes { images: n, maps: k, positions: h * w };
        let mask = mask.map(|mask| with_values(mask, <[T]>::to_vec)).transpose()?;
        let products = with_values(maps, |maps: &[T]| products(maps, mask.as_deref(), sizes))?;
        Ok(Self { sizes, mask, products, cosines })
    }

    /// 1/√G_ii of each map of an image; 0 where it is absent.
    fn inverse_norms(&self, products: &[f64], floor: f64) -> Vec<f64> {
        let maps = self.sizes.maps;
        let inverse = |index: usize| {
            let squared = products[index * maps + index];
            if squared > floor * floor { 1.0 / squared.sqrt() } else { 0.0 }
        };
        (0..maps).map(inverse).collect()
    }

    /// M of each image.
    fn matrices(&self) -> Vec<f64> {
        let Some(floor) = self.cosines else { return self.products.clone() };
        let maps = self.sizes.maps;
        let image = |products: &[f64]| {
            let inverse = self.inverse_norms(products, floor);
            let cosine = |(at, &product): (usize, &f64)| product * inverse[at / maps] * inverse[at % maps];
            products.iter().enumerate().map(cosine).collect::<Vec<_>>()
        };
        self.products.chunks_exact(maps * maps).flat_map(image).collect()
    }

    /// A of each image, from ∂L/∂M.
    fn factors(&self, upstream: &[T]) -> Vec<T> {
        let maps = self.sizes.maps;
        let image = |(products, upstream): (&[f64], &[T])| {
            let both = |i: usize, j: usize| upstream[i * maps + j].to_f64() + upstream[j * maps + i].to_f64();
            let mut factors: Vec<f64> = (0..maps * maps).map(|at| both(at / maps, at % maps)).collect();
            if let Some(floor) = self.cosines {
                let inverse = self.inverse_norms(products, floor);
                for (i, row) in factors.chunks_exact_mut(maps).enumerate() {
                    for (j, factor) in row.iter_mut().enumerate() {
                        *factor *= inverse[i] * inverse[j];
                    }
                    let along: f64 =
                        row.iter().zip(&products[i * maps..]).map(|(factor, product)| factor * product).sum();
                    row[i] -= along * inverse[i] * inverse[i];
                }
            }
            factors.into_iter().map(T::from_f64).collect::<Vec<_>>()
        };
        self.products.chunks_exact(maps * maps).zip(upstream.chunks_exact(maps * maps)).flat_map(image).collect()
    }

    /// ∂L/∂q.
    fn gradient(&self, values: &[T], upstream: &[T]) -> Vec<T> {
        let Sizes { maps, positions, .. } = self.sizes;
        let factors = self.factors(upstream);
        let mut gradient = vec![T::zero(); values.len()];
        gradient.par_chunks_mut(positions).enumerate().for_each(|(plane, gradient)| {
            let image = plane / maps;
            let factors = &factors[plane * maps..][..maps];
            let values = &values[image * maps * positions..][..maps * positions];
            for (tile, gradient) in gradient.chunks_mut(TILE).enumerate() {
                let from = tile * TILE;
                for (&factor, values) in factors.iter().zip(values.chunks_exact(positions)) {
                    for (sum, &value) in gradient.iter_mut().zip(&values[from..]) {
                        *sum += factor * value;
                    }
                }
                if let Some(mask) = &self.mask {
                    for (sum, &counted) in gradient.iter_mut().zip(&mask[image * positions + from..]) {
                        *sum *= counted;
                    }
                }
            }
        });
        gradient
    }
}

/// G of each image, `[N,K,K]`.
fn products<T: WithDType>(maps: &[T], mask: Option<&[T]>, sizes: Sizes) -> Vec<f64> {
    let Sizes { images, maps: count, positions } = sizes;
    let tiles = positions.div_ceil(TILE);
    let of_tile = |task: usize| {
        let (image, from) = (task / tiles, task % tiles * TILE);
        let length = TILE.min(positions - from);
        let mask = mask.map(|mask| &mask[image * positions + from..][..length]);
        let plane = |index: usize| &maps[(image * count + index) * positions + from..][..length];
        let mut products = vec![0.0; count * count];
        let mut masked = vec![T::zero(); length];
        for i in 0..count {
            let row = match mask {
                None => plane(i),
                Some(mask) => {
                    for (masked, (&value, &counted)) in masked.iter_mut().zip(plane(i).iter().zip(mask)) {
                        *masked = value * counted;
                    }
                    &masked
                }
            };
            for j in 0..=i {
                let product = dot(row, plane(j));
                products[i * count + j] = product;
                products[j * count + i] = product;
            }
        }
        products
    };
    // Tiles are a function of the sizes and are added in their order: the same bits for any number of threads.
    let of_tiles: Vec<Vec<f64>> = (0..images * tiles).into_par_iter().map(of_tile).collect();
    let mut sums = vec![0.0; images * count * count];
    for (task, products) in of_tiles.iter().enumerate() {
        for (sum, product) in sums[task / tiles * count * count..].iter_mut().zip(products) {
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

impl<T: WithDType> CustomOp1 for Gram<T> {
    fn name(&self) -> &'static str {
        "gram"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let matrices = self.matrices().into_iter().map(T::from_f64).collect();
        Ok((T::to_cpu_storage_owned(matrices), (self.sizes.images, self.sizes.maps, self.sizes.maps).into()))
    }

    fn bwd(&self, maps: &Tensor, _: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if maps.dtype() != upstream.dtype() {
            bail!("gram: the gradient is of another type than the maps");
        }
        let gradient = with_values(&upstream.contiguous()?, |upstream: &[T]| {
            with_values(&maps.detach(), |maps: &[T]| self.gradient(maps, upstream))
        })??;
        Tensor::from_vec(gradient, maps.shape(), maps.device()).map(Some)
    }
}
