//! Pixel-wise similarity distillation: the student's attention should move from layer to layer as the teacher's does.
//!
//! L = (1/K) Σ_(l,m) mean over n, positions of (R^S_{l,m} − R^T_{l,m})²,   R as in [`residual_attention`],   K pairs
//!
//! Source: Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image Segmentation", IEEE TIP 30
//! (2021) 5363–5376. The paper's text leaves several choices open; each is a switch here, and the two readings in use
//! are [`Psd::paper_reading`] and [`Psd::cirkd_compat`]. Derivation of the gradient: docs/losses/dsd.md.
//!
//! [`residual_attention`]: crate::residual_attention

use candle_core::{D, Tensor};
use dsd_ops::{check, resize_bilinear};
use serde::{Deserialize, Serialize};

use crate::attention::{check_eps, check_power, residual, unit_attention};
use crate::mask::Counted;
use crate::mean_power::mean_power;
use crate::unit::guarded_sqrt;
use crate::{Error, Result};

/// Positions of the grid at which a weight has its published meaning under [`PsdReduction::ResolutionNormalised`]:
/// 65 × 65, the features of a 512 × 512 crop at stride 8 in networks whose pooling rounds up.
pub const REFERENCE_POSITIONS: f64 = 65.0 * 65.0;

/// Which pairs of layers give a residual attention map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerPairs {
    /// (1,2), (2,3), …, (L−1,L): K = L − 1. What a reader's note on the paper says.
    Adjacent,
    /// Every l < m: K = L (L − 1) / 2. What the re-implementation in CIRKD does.
    All,
}

/// What to do where the four attention maps of a pair (student and teacher, shallow and deep) differ in size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapSize {
    /// Resize the energies, before they are normalised, to the map with the fewest positions: bilinear, corners aligned.
    Coarsest,
    /// Refuse: the re-implementation in CIRKD knows no resize.
    Equal,
}

/// How the squared differences become one number. d is the difference of two residual maps of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsdReduction {
    /// Mean of d² over images and positions. The published weight 1000 belongs to it. Since the maps have length 1,
    /// this is proportional to 1/positions: half the crop side, four times the loss.
    SquaredMean,
    /// [`SquaredMean`](Self::SquaredMean) × positions / [`REFERENCE_POSITIONS`]: the value does not depend on the
    /// resolution, and equals `SquaredMean` on a 65 × 65 grid, so that a published weight keeps its meaning.
    ResolutionNormalised,
    /// Sum of d² over positions, mean over images.
    SquaredSum,
    /// Square root of the sum of d² over positions, mean over images.
    Norm,
}

/// Settings of [`psd`]. No `Default`: take a named reading and change it, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Psd {
    /// Which layers are compared.
    pub pairs: LayerPairs,
    /// p of the attention map, dimensionless, ≥ 1.
    pub power: f64,
    /// Whether the residual map is given length 1 again.
    pub normalise_residual: bool,
    /// How differences become a number.
    pub reduction: PsdReduction,
    /// What happens to maps of different sizes.
    pub map_size: MapSize,
    /// The norm, dimensionless, up to which a residual map counts as zero and passes no gradient; > 0, and ≥ 1e-8 with
    /// f32 tensors. Residual maps are differences of unit vectors: their norm is at most √2.
    pub eps: f64,
}

impl Psd {
    /// The reading that the sources support best: adjacent layers, p = 2, normalised residual, squared mean.
    #[must_use]
    pub const fn paper_reading() -> Self {
        Self {
            pairs: LayerPairs::Adjacent,
            power: 2.0,
            normalise_residual: true,
            reduction: PsdReduction::SquaredMean,
            map_size: MapSize::Coarsest,
            eps: 1e-6,
        }
    }

    /// As the re-implementation in winycg/CIRKD computes it: all pairs, equal sizes only.
    #[must_use]
    pub const fn cirkd_compat() -> Self {
        Self { pairs: LayerPairs::All, map_size: MapSize::Equal, ..Self::paper_reading() }
    }

    pub(crate) fn check(self, op: &'static str, like: &Tensor) -> Result<()> {
        check_power(op, self.power)?;
        check_eps(op, self.eps, like)
    }
}

/// Pixel-wise similarity distillation between two lists of feature layers.
///
/// # Shapes
/// student, teacher: L ≥ 2 layers each, shallow to deep, `[N,C_l,H_l,W_l]` float; channels and sizes may differ
/// between layers and between student and teacher. valid: `[N,H,W]` u8, 1 = counted, 0 = ignored.
/// # Returns
/// `[]` float, ≥ 0, dimensionless. At ignored positions the attention is set to zero before normalisation; they, and
/// images without a counted position, leave the means. Nothing counted: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only. An image whose student residual is `eps` or less in norm passes none through that pair.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32 with power 2 or 4. Independent of the scale of each layer.
/// # Errors
/// Shape, DType or Param, naming the argument; layers of different sizes where `map_size` is [`MapSize::Equal`].
/// # Source
/// Feng et al. 2021 (see the top of the file); reduction and normalisation as in winycg/CIRKD, `losses/dsd.py`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{Psd, psd};
/// let layer = |values: Vec<f64>| Tensor::from_vec(values, (1, 1, 2, 2), &Device::Cpu);
/// let student = [layer(vec![1., 0., 0., 0.])?, layer(vec![0., 1., 0., 0.])?];
/// let teacher = [layer(vec![0., 1., 0., 0.])?, layer(vec![1., 0., 0., 0.])?];
/// // Attention moves the opposite way: unit residuals with opposite signs, squared distance 4, over 4 positions.
/// let loss = psd(&student, &teacher, None, Psd::paper_reading())?.to_scalar::<f64>()?;
/// assert!((loss - 1.0).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn psd(student: &[Tensor], teacher: &[Tensor], valid: Option<&Tensor>, cfg: Psd) -> Result<Tensor> {
    const OP: &str = "psd";
    if student.len() < 2 {
        return Err(check::param(OP, "student", "at least 2 feature layers", student.len()));
    }
    if teacher.len() != student.len() {
        return Err(check::param(OP, "teacher", format!("{} feature layers as student", student.len()), teacher.len()));
    }
    for (argument, layers) in [("student", student), ("teacher", teacher)] {
        for (index, layer) in layers.iter().enumerate() {
            check_layer(OP, argument, index, layer, &student[0])?;
        }
    }
    cfg.check(OP, &student[0])?;

    let student = energies(student.iter().cloned(), cfg.power)?;
    let teacher = energies(teacher.iter().map(Tensor::detach), cfg.power)?;
    let mut sum: Option<Tensor> = None;
    let pairs = layer_pairs(student.len(), cfg.pairs);
    for &(shallow, deep) in &pairs {
        let maps = [&student[shallow], &student[deep], &teacher[shallow], &teacher[deep]];
        let named = [("student", maps[0]), ("student", maps[1]), ("teacher", maps[2]), ("teacher", maps[3])];
        let size = common_size(OP, &named, cfg.map_size)?;
        let counted = Counted::at(OP, valid, maps[0], size)?;
        let attention = |energy: &Tensor| unit_attention(resized(energy, size)?, &counted);
        let of_student = residual(&attention(maps[0])?, &attention(maps[1])?, cfg.normalise_residual, cfg.eps)?;
        let of_teacher = residual(&attention(maps[2])?, &attention(maps[3])?, cfg.normalise_residual, cfg.eps)?;
        let term = reduced(&(of_student - of_teacher)?, &counted, cfg.reduction, cfg.eps)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => Ok((sum / pairs.len() as f64)?),
        None => Err(check::param(OP, "student", "at least 2 feature layers", student.len())),
    }
}

/// One layer against the first of the student: rank, type and batch; errors name the layer, counted from 1.
pub(crate) fn check_layer(
    op: &'static str,
    argument: &'static str,
    index: usize,
    layer: &Tensor,
    first: &Tensor,
) -> Result<()> {
    let batch = check::nchw(op, "student", first)?.0;
    check::dtype(op, argument, layer, first.dtype())?;
    match *layer.dims() {
        [n, c, h, w] if n == batch && c * h * w > 0 => Ok(()),
        _ => {
            let expected = format!("[{batch},C,H,W] with no size 0 for layer {} of the list", index + 1);
            Err(check::shape(op, argument, expected, layer))
        }
    }
}

fn energies(layers: impl Iterator<Item = Tensor>, power: f64) -> Result<Vec<Tensor>> {
    layers.map(|layer| mean_power(&layer, power)).collect()
}

/// (shallow, deep) indices.
fn layer_pairs(layers: usize, pairs: LayerPairs) -> Vec<(usize, usize)> {
    match pairs {
        LayerPairs::Adjacent => (1..layers).map(|deep| (deep - 1, deep)).collect(),
        LayerPairs::All => {
            (0..layers).flat_map(|shallow| (shallow + 1..layers).map(move |deep| (shallow, deep))).collect()
        }
    }
}

/// The grid on which maps, each with its argument's name, are compared.
pub(crate) fn common_size(op: &'static str, maps: &[(&'static str, &Tensor)], rule: MapSize) -> Result<[usize; 2]> {
    let size = |map: &Tensor| -> Result<[usize; 2]> {
        let (_, _, h, w) = map.dims4()?;
        Ok([h, w])
    };
    let mut coarsest = match maps {
        [(_, first), ..] => size(first)?,
        [] => return Err(check::param(op, "student", "at least 1 feature layer", 0)),
    };
    for &(argument, map) in maps {
        let [h, w] = size(map)?;
        if rule == MapSize::Equal && [h, w] != coarsest {
            return Err(Error::Param {
                op,
                argument,
                expected: format!("features of equal H×W, {}×{} (or map_size Coarsest)", coarsest[0], coarsest[1]),
                got: format!("{h}×{w}"),
            });
        }
        if h * w < coarsest[0] * coarsest[1] {
            coarsest = [h, w];
        }
    }
    Ok(coarsest)
}

pub(crate) fn resized(energy: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let (_, _, h, w) = energy.dims4()?;
    if [h, w] == size { Ok(energy.clone()) } else { resize_bilinear(energy, size, true) }
}

/// `[N,P]` differences → `[]`.
pub(crate) fn reduced(difference: &Tensor, counted: &Counted, reduction: PsdReduction, eps: f64) -> Result<Tensor> {
    let squared = difference.sqr()?.sum(D::Minus1)?; // [N]
    Ok(match reduction {
        PsdReduction::SquaredMean => (squared.sum_all()? / counted.positions)?,
        PsdReduction::ResolutionNormalised => (squared.sum_all()? / (counted.images * REFERENCE_POSITIONS))?,
        PsdReduction::SquaredSum => (squared.sum_all()? / counted.images)?,
        PsdReduction::Norm => (guarded_sqrt(&squared, eps)?.0.sum_all()? / counted.images)?,
    })
}
