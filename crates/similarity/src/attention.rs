//! Attention maps of feature layers, and how attention moves between two layers.
//!
//! a_l = (1/C_l) Σ_c |F_l[c]|^p;   A_l = n(a_l);   R_{l,m} = n(A_m − A_l), m deeper than l;   n(v) = v / ‖v‖₂ over
//! positions
//!
//! Sources: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (the map); Feng et al., "Double
//! Similarity Distillation for Semantic Image Segmentation", IEEE TIP 30 (2021) (the residual). Readings and the
//! gradient: docs/losses/dsd.md.

use candle_core::Tensor;
use dsd_ops::check;

use crate::Result;
use crate::mask::Counted;
use crate::mean_power::mean_power;
use crate::unit::unit;

/// A map whose greatest value is at most this counts as zero: there is nothing to attend to.
const SILENT: f64 = 1e-20;
/// Below the norm of every map that is not silent: the greatest value of a scaled map is 1.
const SILENT_NORM: f64 = 0.5;

/// The attention map of a feature layer: where its activations are strong, as a vector of length 1 per image.
///
/// # Shapes
/// features: `[N,C,H,W]` float.
/// # Returns
/// `[N,H,W]`, ≥ 0, L2 norm 1 over the positions of each image; 0 for an image whose features are all zero.
/// # Gradient
/// Reaches `features`; 0 at a feature that is 0, and for an image whose features are all zero.
/// # Numerics
/// Independent of the scale of the features: finite while |feature|^power, summed over channels, fits the type. Maps
/// below 1e-20 count as zero.
/// # Errors
/// Shape, DType; Param where `power` is below 1 or not finite.
/// # Source
/// Zagoruyko and Komodakis 2017, activation-based attention with the sum of powers (`power` = 2 there).
///
/// ```
/// use candle_core::{Device, Tensor};
/// // Two channels on a 1×2 grid: the sums of squares are 9 and 16.
/// let features = Tensor::from_vec(vec![3f64, 0., 0., 4.], (1, 2, 1, 2), &Device::Cpu)?;
/// let map = dsd_similarity::attention_map(&features, 2.0)?.flatten_all()?.to_vec1::<f64>()?;
/// assert!((map[0] - 9.0 / 337f64.sqrt()).abs() < 1e-15);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn attention_map(features: &Tensor, power: f64) -> Result<Tensor> {
    let (n, _, h, w) = check::nchw("attention_map", "features", features)?;
    check_power("attention_map", power)?;
    let everywhere = Counted::at("attention_map", None, features, [h, w])?;
    Ok(unit_attention(mean_power(features, power)?, &everywhere)?.reshape((n, h, w))?)
}

/// The residual attention of two layers: where a deeper layer attends more, and where less, than a shallower one.
///
/// # Shapes
/// shallow, deep: `[N,H,W]` float, attention maps on the same grid.
/// # Returns
/// `[N,H,W]`: deep − shallow, with L2 norm 1 over the positions of each image where `normalise`; 0 for an image whose
/// maps differ by `eps` or less in norm.
/// # Gradient
/// Reaches both; none passes through an image that was set to 0.
/// # Errors
/// Shape, DType; Param where `eps` is not positive, or below 1e-8 with f32 maps.
/// # Source
/// Feng et al. 2021; normalisation as in the re-implementation of winycg/CIRKD, `losses/dsd.py`.
pub fn residual_attention(shallow: &Tensor, deep: &Tensor, normalise: bool, eps: f64) -> Result<Tensor> {
    const OP: &str = "residual_attention";
    check::float(OP, "shallow", shallow)?;
    let dims = match *shallow.dims() {
        [n, h, w] if n * h * w > 0 => (n, h, w),
        _ => return Err(check::shape(OP, "shallow", "[N,H,W] with no size 0", shallow)),
    };
    check::dtype(OP, "deep", deep, shallow.dtype())?;
    check::same_shape(OP, "deep", deep, shallow.dims())?;
    check_eps(OP, eps, shallow)?;
    Ok(residual(&shallow.flatten_from(1)?, &deep.flatten_from(1)?, normalise, eps)?.reshape(dims)?)
}

/// `[N,1,h,w]` energies → `[N,h·w]` attention of length 1, ignored positions 0.
pub(crate) fn unit_attention(energy: Tensor, counted: &Counted) -> Result<Tensor> {
    let energy = counted.apply(energy)?.flatten_from(1)?;
    // The unit vector does not depend on the scale, so this one is a constant for the gradient. It keeps the squares in
    // range: features of 1e4 have energies of 1e8, features of 1e-5 energies of 1e-10.
    let greatest = energy.detach().max_keepdim(1)?;
    let heard = greatest.gt(SILENT)?.to_dtype(energy.dtype())?;
    let scale = ((&greatest * &heard)? + heard.affine(-1.0, 1.0)?)?;
    unit(&energy.broadcast_div(&scale)?, SILENT_NORM)
}

/// `[N,P]` attention maps → `[N,P]` residual.
pub(crate) fn residual(shallow: &Tensor, deep: &Tensor, normalise: bool, eps: f64) -> Result<Tensor> {
    let difference = (deep - shallow)?;
    if normalise { unit(&difference, eps) } else { Ok(difference) }
}

pub(crate) fn check_power(op: &'static str, power: f64) -> Result<()> {
    if power.is_finite() && power >= 1.0 {
        Ok(())
    } else {
        Err(check::param(op, "power", "a finite number of at least 1", power))
    }
}

/// f32 rounding makes differences of about 1e-7 out of equal maps; their direction is noise.
pub(crate) fn check_eps(op: &'static str, eps: f64, like: &Tensor) -> Result<()> {
    check::positive(op, "eps", eps)?;
    if like.dtype() == candle_core::DType::F32 && eps < 1e-8 {
        return Err(check::param(op, "eps", "at least 1e-8 with f32 tensors", eps));
    }
    Ok(())
}
