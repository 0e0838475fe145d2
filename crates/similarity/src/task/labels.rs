//! Labels of a batch, checked against the logits they belong to.

use candle_core::{DType, Tensor};
use dsd_ops::check;

use super::node::with_values;
use crate::Result;

/// Class ids `[N,H,W]`, with the sizes of their logits.
pub(super) struct Labels {
    /// N, at least 1.
    pub(super) batch: usize,
    /// C, at least 1.
    pub(super) classes: usize,
    /// H, at least 1.
    pub(super) height: usize,
    /// W, at least 1.
    pub(super) width: usize,
    /// Row-major.
    pub(super) ids: Vec<u8>,
    /// The label of pixels that count nothing.
    pub(super) ignored: u8,
}

impl Labels {
    /// Reads the labels of `logits`.
    pub(super) fn read(op: &'static str, logits: &Tensor, labels: &Tensor, ignored: u8) -> Result<Self> {
        let (batch, classes, height, width) = check::nchw(op, "logits", logits)?;
        check::dtype(op, "labels", labels, DType::U8)?;
        check::same_shape(op, "labels", labels, &[batch, height, width])?;
        let ids = with_values(&labels.contiguous()?, |ids: &[u8]| ids.to_vec())?;
        let wrong = |&id: &u8| usize::from(id) >= classes && id != ignored;
        if let Some(pixel) = ids.iter().position(wrong) {
            let expected = format!("a class id below {classes} (the number of classes) or the ignored label {ignored}");
            let (n, h, w) = (pixel / (height * width), pixel / width % height, pixel % width);
            return Err(check::param(op, "labels", expected, format!("{} at pixel (n {n}, h {h}, w {w})", ids[pixel])));
        }
        Ok(Self { batch, classes, height, width, ids, ignored })
    }

    /// H·W.
    pub(super) fn positions(&self) -> usize {
        self.height * self.width
    }

    /// The labels of one image.
    pub(super) fn image(&self, index: usize) -> &[u8] {
        &self.ids[index * self.positions()..(index + 1) * self.positions()]
    }

    /// Counted pixels of each class in each image, `[N][C]`.
    pub(super) fn histogram(&self) -> Vec<Vec<usize>> {
        let of_image = |image| {
            let mut pixels = [0; 256];
            self.image(image).iter().for_each(|&id| pixels[usize::from(id)] += 1);
            pixels[usize::from(self.ignored)] = 0;
            pixels.into_iter().chain(std::iter::repeat(0)).take(self.classes).collect()
        };
        (0..self.batch).map(of_image).collect()
    }
}
