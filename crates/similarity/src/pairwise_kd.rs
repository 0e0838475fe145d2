//! Pair-wise distillation: any two places of an image should be as similar to the student as they are to the teacher.
//!
//! f̂_i = f_i / ‖f_i‖₂ over channels;   G_ij = f̂_i · f̂_j;   L = mean over n, i, j of (G^S − G^T)²
//!
//! Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, eq. 2 and 3. Differs
//! from their code: ignored pixels leave windows, pairs and the mean; the norm passes its gradient on (as in CIRKD's
//! `losses/skd.py`; theirs treats it as a constant). Derivation and cost: docs/losses/pairwise_kd.md.

use candle_core::{DType, Tensor};
use dsd_ops::{PoolOptions, avg_pool2d, check, max_pool2d};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::grid::{Channels, pair, unit_channels};
use crate::mask::Counted;

/// The windows that are pooled into one place before places are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolWindow {
    /// Every position is a place.
    None,
    /// Windows of this height and width; those at the lower and right edge may hold fewer positions.
    Pixels([usize; 2]),
    /// Windows of this share of height and width, rounded down but at least one position: 0.5 gives 2 × 2 places, and
    /// 3 × 3 where the sizes are odd.
    Share(f64),
}

/// Settings of [`pairwise_kd`]. No `Default`: take a published form and change it, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairwiseKd {
    /// The windows.
    pub window: PoolWindow,
    /// Whether a window gives its average; otherwise its maximum, by channel.
    pub average: bool,
}

impl PairwiseKd {
    /// As the authors' script: the maximum over windows of half the height and width (weight 0.5 there).
    #[must_use]
    pub const fn published() -> Self {
        Self { window: PoolWindow::Share(0.5), average: false }
    }

    /// As CIRKD's code: the maximum over 2 × 2 positions (weight 10 there).
    #[must_use]
    pub const fn cirkd_compat() -> Self {
        Self { window: PoolWindow::Pixels([2, 2]), average: false }
    }

    /// Every position against every other.
    #[must_use]
    pub const fn unpooled() -> Self {
        Self { window: PoolWindow::None, average: false }
    }
}

/// Pair-wise similarity distillation of one feature.
///
/// # Shapes
/// student: `[N,C,H,W]` float. teacher: `[N,C',H',W']` of the same type; channels may differ; where the sizes differ,
/// the finer one is resized to the coarser (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted, 0 =
/// ignored; `None` counts all.
/// # Returns
/// `[]` float, dimensionless, at most 4, ≥ 0 up to rounding. A place counts where its window holds a counted position;
/// the mean runs over pairs of counted places of one image. Nothing counted: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only. A place whose feature is 1e-12 or less in norm is similar to none and gets no gradient.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32. Independent of the scale of each place's feature.
/// # Memory and time
/// No matrix of places × places is built where there are more places than channels: the same number follows from
/// products of channels × channels, at 3·C²·P multiply-adds instead of 2·C·P² for P places.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{PairwiseKd, pairwise_kd};
/// // Two places: equal to the student (cosine 1), at right angles to the teacher (cosine 0).
/// let student = Tensor::from_vec(vec![1f64, 2., 0., 0.], (1, 2, 1, 2), &Device::Cpu)?;
/// let teacher = Tensor::from_vec(vec![1f64, 0., 0., 1.], (1, 2, 1, 2), &Device::Cpu)?;
/// let loss = pairwise_kd(&student, &teacher, None, PairwiseKd::unpooled())?.to_scalar::<f64>()?;
/// assert!((loss - 0.5).abs() < 1e-12); // two of the four pairs differ by 1
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn pairwise_kd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: PairwiseKd) -> Result<Tensor> {
    const OP: &str = "pairwise_kd";
    let pair = pair(OP, student, teacher, valid, Channels::Free)?;
    let (_, _, h, w) = pair.teacher.dims4()?;
    let window = match cfg.window {
        PoolWindow::None => [1, 1],
        PoolWindow::Pixels(window) if !window.contains(&0) => [window[0].min(h), window[1].min(w)],
        PoolWindow::Pixels(window) => {
            return Err(check::param(OP, "window", "at least 1 by 1", format!("{window:?}")));
        }
        PoolWindow::Share(share) if share > 0.0 && share <= 1.0 => {
            [h, w].map(|side| ((side as f64 * share) as usize).max(1))
        }
        PoolWindow::Share(share) => return Err(check::param(OP, "window", "a share above 0, at most 1", share)),
    };
    let pooling = PoolOptions { kernel: window, stride: window, padding: [0, 0], ceil_mode: true };
    let counted = match &pair.counted.mask {
        Some(mask) => Counted::of_mask(max_pool2d(mask, pooling)?)?,
        None => Counted::everything(pair.teacher.dim(0)?, [h.div_ceil(window[0]), w.div_ceil(window[1])]),
    };
    let places = |x: &Tensor| -> Result<Tensor> {
        let pooled = if window == [1, 1] { x.clone() } else { pooled(x, &pair.counted, pooling, cfg.average)? };
        Ok(unit_channels(&counted.apply(pooled)?)?.flatten_from(2)?) // [N,C,P]
    };

    let squared = squared_distance(&places(&pair.student)?, &places(&pair.teacher)?)?;
    let pairs: f64 = counted.per_image.iter().map(|places| places * places).sum();
    Ok((squared / pairs.max(1.0))?.to_dtype(student.dtype())?)
}

/// The maximum or the average over the counted positions of each window; a window without one gives any finite number.
fn pooled(x: &Tensor, counted: &Counted, pooling: PoolOptions, average: bool) -> Result<Tensor> {
    if !average {
        return max_pool2d(&counted.lower(x)?, pooling);
    }
    let Some(mask) = &counted.mask else { return avg_pool2d(x, pooling, false) };
    let share = avg_pool2d(mask, pooling, false)?; // of counted positions in a window
    let divisor = (&share + share.eq(0.0)?.to_dtype(share.dtype())?)?;
    Ok(avg_pool2d(&x.broadcast_mul(mask)?, pooling, false)?.broadcast_div(&divisor)?)
}

/// Σ_{n,i,j} (a_i · a_j − b_i · b_j)², in f64, for the columns of a `[N,C,P]` and b `[N,C',P]`.
///
/// With A and B as matrices of columns, ‖AᵀA − BᵀB‖² = ‖AAᵀ‖² − 2·‖ABᵀ‖² + ‖BBᵀ‖²: the right side has matrices of
/// channels × channels only. The sums run in f64, because their difference is small where the networks agree.
fn squared_distance(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let transposed = |x: &Tensor| -> Result<Tensor> { Ok(x.transpose(1, 2)?.contiguous()?) };
    let (a_rows, b_rows) = (transposed(a)?, transposed(b)?);
    let squares = |x: Tensor| -> Result<Tensor> { Ok(x.to_dtype(DType::F64)?.sqr()?.sum_all()?) };
    if a.dim(2)? <= a.dim(1)?.max(b.dim(1)?) {
        return squares((a_rows.matmul(a)? - b_rows.matmul(b)?)?);
    }
    let own = squares(a.matmul(&a_rows)?)?; // of [N,C,C]
    let cross = squares(a.matmul(&b_rows)?)?; // of [N,C,C']
    let other = squares(b.matmul(&b_rows)?)?; // of [N,C',C']
    Ok(((own + other)? - (cross * 2.0)?)?)
}
