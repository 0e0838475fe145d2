//! Cross-image relations with a memory: the teacher's embeddings of earlier batches, by class, and the loss on them.
//!
//! f̂ = f / ‖f‖₂ over channels;   p = softmax_m(f̂ · v_m / (τ·T)) over embeddings v_m drawn from the bank
//! L = T² · mean over counted places of KL(p^T ‖ p^S)
//!
//! Source: Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022, eq. 6 to
//! 12. Differs from their code: a bank begins empty instead of random, and only what was written is drawn; a full queue
//! goes on at its beginning in the middle of a write; each class draws its own places. Details: docs/losses/cirkd.md.

use candle_core::{DType, Tensor};
use dsd_ops::check;

use crate::cross_image::places;
use crate::grid::{Channels, pair, unit_channels};
use crate::ifvd::members;
use crate::mask::Counted;
use crate::relation::{Relation, Wanted, with_gradients};
use crate::{Result, unit::unit};

/// The norm up to which an embedding counts as zero; its square is still a normal f32.
const ABSENT_NORM: f64 = 1e-12;

/// Queues of unit embeddings, one for each class: plain state that the caller owns, saves and restores.
///
/// One bank of pixels and one of regions make the memory of CIRKD. There a class has 20000 pixels and 2000 regions; a
/// bank takes classes × capacity × width numbers (19 · 20000 · 512 in f32: 778 MB). Writing changes `embeddings` in place,
/// and so every clone of that tensor: copy it to keep it.
#[derive(Debug)]
pub struct MemoryBank {
    /// `[classes, capacity, width]`, unit vectors or, where nothing was written, zeros.
    pub embeddings: Tensor,
    /// Embeddings ever written, by class. The next goes to this number modulo the capacity.
    pub written: Vec<u64>,
}

impl MemoryBank {
    /// An empty bank.
    ///
    /// # Errors
    /// Param where a size is 0; DType where `dtype` is neither f32 nor f64.
    pub fn new(classes: usize, capacity: usize, width: usize, dtype: DType) -> Result<Self> {
        for (argument, size) in [("classes", classes), ("capacity", capacity), ("width", width)] {
            if size == 0 {
                return Err(check::param("memory_bank", argument, "at least 1", 0));
            }
        }
        let embeddings = Tensor::zeros((classes, capacity, width), dtype, &candle_core::Device::Cpu)?;
        check::float("memory_bank", "dtype", &embeddings)?;
        Ok(Self { embeddings, written: vec![0; classes] })
    }

    /// Embeddings that a class holds.
    #[must_use]
    pub fn len(&self, class: usize) -> usize {
        let capacity = self.embeddings.dims().get(1).copied().unwrap_or(0);
        self.written.get(class).map_or(0, |&written| capacity.min(usize::try_from(written).unwrap_or(usize::MAX)))
    }

    /// Whether no class holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written.iter().all(|&written| written == 0)
    }

    /// Writes up to `per_class` counted places of each class of each image: the teacher's embeddings of a batch.
    ///
    /// # Shapes
    /// features: `[N,width,H,W]` float, the teacher's, of the bank's type; normalised here. labels: `[N,H',W']` u8 class
    /// ids. valid: `[N,H'',W'']` u8, 1 = counted, 0 = ignored. Both are brought to the features' grid by nearest
    /// neighbour.
    /// # Randomness
    /// `below(n)` gives a number from 0 to n − 1. It is asked once per place written, classes in order within images in
    /// order: the same answers, the same bank.
    /// # Errors
    /// Shape, DType or Param, naming the argument.
    pub fn push_pixels(
        &mut self,
        features: &Tensor,
        labels: &Tensor,
        valid: Option<&Tensor>,
        per_class: usize,
        below: &mut dyn FnMut(usize) -> usize,
    ) -> Result<()> {
        let batch = self.batch("push_pixels", features, labels, valid)?;
        let rows = unit_channels(&features.detach())?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [N,P,D]
        for (image, classes) in batch.iter().enumerate() {
            for (class, places) in classes.iter().enumerate() {
                let chosen = draw(places.clone(), per_class, below);
                if !chosen.is_empty() {
                    let count = chosen.len();
                    let chosen = Tensor::from_vec(chosen, count, rows.device())?;
                    self.write(class, &rows.get(image)?.index_select(&chosen, 0)?)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the mean embedding of each class of each image, normalised again: a region.
    ///
    /// # Shapes
    /// As [`push_pixels`](Self::push_pixels).
    /// # Errors
    /// Shape, DType or Param, naming the argument.
    pub fn push_regions(&mut self, features: &Tensor, labels: &Tensor, valid: Option<&Tensor>) -> Result<()> {
        let batch = self.batch("push_regions", features, labels, valid)?;
        let rows = unit_channels(&features.detach())?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [N,P,D]
        for (image, classes) in batch.into_iter().enumerate() {
            for (class, places) in classes.into_iter().enumerate() {
                if !places.is_empty() {
                    let count = places.len();
                    let places = Tensor::from_vec(places, count, rows.device())?;
                    let mean = rows.get(image)?.index_select(&places, 0)?.mean_keepdim(0)?;
                    self.write(class, &unit(&mean, ABSENT_NORM)?)?;
                }
            }
        }
        Ok(())
    }

    /// Up to `per_class` different embeddings of each class, a copy: `[M,width]`, classes in order; M may be 0.
    ///
    /// # Randomness
    /// `below(n)` gives a number from 0 to n − 1; it is asked once per embedding.
    /// # Errors
    /// Those of the tensor library.
    pub fn sample(&self, per_class: usize, below: &mut dyn FnMut(usize) -> usize) -> Result<Tensor> {
        let (classes, capacity, width) = self.embeddings.dims3()?;
        let mut rows = Vec::new();
        for class in 0..classes {
            let held: Vec<u32> = (0u32..).take(self.len(class)).collect();
            rows.extend(draw(held, per_class, below).into_iter().map(|row| row + (class * capacity) as u32));
        }
        let count = rows.len();
        if count == 0 {
            return Ok(Tensor::zeros((0, width), self.embeddings.dtype(), self.embeddings.device())?);
        }
        let rows = Tensor::from_vec(rows, count, self.embeddings.device())?;
        Ok(self.embeddings.reshape((classes * capacity, width))?.index_select(&rows, 0)?)
    }

    /// The counted places of each class of each image, as indices of the features' grid.
    fn batch(
        &self,
        op: &'static str,
        features: &Tensor,
        labels: &Tensor,
        valid: Option<&Tensor>,
    ) -> Result<Vec<Vec<Vec<u32>>>> {
        let (classes, _, width) = self.embeddings.dims3()?;
        let (n, channels, h, w) = check::nchw(op, "features", features)?;
        check::dtype(op, "features", features, self.embeddings.dtype())?;
        if channels != width {
            return Err(check::shape(op, "features", format!("[N,{width},H,W]"), features));
        }
        let counted = Counted::at(op, valid, features, [h, w])?;
        let members = counted.apply(members(op, labels, [n, h, w], classes, features.dtype())?)?;
        let members = members.flatten_from(2)?.to_dtype(DType::U8)?.to_vec3::<u8>()?;
        let places = |row: Vec<u8>| (0u32..).zip(row).filter(|&(_, one)| one == 1).map(|(place, _)| place).collect();
        Ok(members.into_iter().map(|image| image.into_iter().map(places).collect()).collect())
    }

    /// Puts rows `[R,width]` into the queue of a class; of more rows than the queue is long the last ones stay.
    fn write(&mut self, class: usize, rows: &Tensor) -> Result<()> {
        let (classes, capacity, width) = self.embeddings.dims3()?;
        let table = self.embeddings.reshape((classes * capacity, width))?;
        for row in 0..rows.dim(0)? {
            let place = (self.written[class] % capacity as u64) as usize;
            table.slice_set(&rows.narrow(0, row, 1)?.contiguous()?, 0, class * capacity + place)?;
            self.written[class] += 1;
        }
        Ok(())
    }
}

/// Up to `count` different items, in random order.
fn draw(mut items: Vec<u32>, count: usize, below: &mut dyn FnMut(usize) -> usize) -> Vec<u32> {
    let count = count.min(items.len());
    for first in 0..count {
        let other = first + below(items.len() - first).min(items.len() - first - 1);
        items.swap(first, other);
    }
    items.truncate(count);
    items
}

/// Settings of [`memory_contrast`]. No `Default`: take the published numbers, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryContrast {
    /// τ of the similarities, dimensionless, finite, > 0.
    pub contrast_temperature: f64,
    /// T of the distillation, dimensionless, finite, > 0.
    pub temperature: f64,
}

impl MemoryContrast {
    /// τ = 0.1, T = 1; weights 0.1 for pixels and 0.1 for regions (0.01 on VOC).
    #[must_use]
    pub const fn published() -> Self {
        Self { contrast_temperature: 0.1, temperature: 1.0 }
    }
}

/// A place should resemble remembered embeddings as it does to the teacher: CIRKD's pixel-to-pixel and, with regions in
/// the memory, pixel-to-region term.
///
/// # Shapes
/// student: `[N,D,H,W]` float, projected to the teacher's channels. teacher: `[N,D,H',W']` of the same type; where the
/// sizes differ, the finer one is resized to the coarser (bilinear, corners aligned). memory: `[M,D]`, unit vectors of
/// [`MemoryBank::sample`]. valid: `[N,H'',W'']` u8, 1 = counted, 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, in nats, ≥ 0 up to rounding. Nothing counted, or fewer than two embeddings: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only, and through it the projection.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32. Independent of the scale of each place's feature.
/// # Memory and time
/// Similarities exist a tile of about a million at a time; 3·D·M multiply-adds per place.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
pub fn memory_contrast(
    student: &Tensor,
    teacher: &Tensor,
    memory: &Tensor,
    valid: Option<&Tensor>,
    cfg: MemoryContrast,
) -> Result<Tensor> {
    const OP: &str = "memory_contrast";
    let contrast = check::positive(OP, "contrast_temperature", cfg.contrast_temperature)?;
    let t = check::positive(OP, "temperature", cfg.temperature)?;
    let pair = pair(OP, student, teacher, valid, Channels::Equal)?;
    check::dtype(OP, "memory", memory, student.dtype())?;
    let width = pair.teacher.dim(1)?;
    match *memory.dims() {
        [_, d] if d == width => {}
        _ => return Err(check::shape(OP, "memory", format!("[M,{width}]"), memory)),
    }
    let (of_student, of_teacher) = (places(&pair.student, &pair.counted)?, places(&pair.teacher, &pair.counted)?);
    if memory.dim(0)? < 2 || of_student.is_empty() {
        return with_gradients(0.0, student, &[(&pair.student, pair.student.zeros_like()?)]);
    }
    let (anchors, of_teacher) = (Tensor::cat(&of_student, 0)?, Tensor::cat(&of_teacher, 0)?);
    let memory = memory.detach().contiguous()?;
    let relation = Relation {
        student_anchors: &anchors.detach(),
        student_others: &memory,
        teacher_anchors: &of_teacher,
        teacher_others: &memory,
        temperature: contrast * t,
    };
    let found = relation.divergence(if student.track_op() { Wanted::Anchors } else { Wanted::Nothing })?;
    let scale = t * t / anchors.dim(0)? as f64;
    let parts = match found.of_anchors {
        Some(gradient) => vec![(&anchors, (gradient * scale)?)],
        None => Vec::new(),
    };
    with_gradients(found.value * scale, student, &parts)
}
