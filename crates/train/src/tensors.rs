//! Where plain arrays of `data` become tensors.

use candle_core::{Device, Tensor};
use dsd_data::Batch;

use crate::Result;

/// The images `[N,3,H,W]` f32 and labels `[N,H,W]` u8 of a batch; takes the arrays without a copy.
pub(crate) fn from_batch(batch: Batch, device: &Device) -> Result<(Tensor, Tensor)> {
    let Batch { images, labels, count, height, width, .. } = batch;
    let images = Tensor::from_vec(images, (count, 3, height, width), device)?;
    let labels = Tensor::from_vec(labels, (count, height, width), device)?;
    Ok((images, labels))
}

/// The labels at another grid, by nearest neighbour: `[N,H,W]` u8 → `[N,h,w]` u8.
///
/// Cell (y, x) takes the label under its centre. Used where a distillation term works at the network's own resolution.
pub(crate) fn labels_at(labels: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
    let (count, full_height, full_width) = labels.dims3()?;
    if (full_height, full_width) == (height, width) {
        return Ok(labels.clone());
    }
    let source = labels.flatten_all()?.to_vec1::<u8>()?;
    let mut small = Vec::with_capacity(count * height * width);
    for n in 0..count {
        for y in 0..height {
            let row = (n * full_height + (2 * y + 1) * full_height / (2 * height)) * full_width;
            small.extend((0..width).map(|x| source[row + (2 * x + 1) * full_width / (2 * width)]));
        }
    }
    Ok(Tensor::from_vec(small, (count, height, width), labels.device())?)
}

/// 1 where a label counts, 0 where it is ignored: u8, same shape.
pub(crate) fn valid(labels: &Tensor, ignore_label: u8) -> Result<Tensor> {
    Ok(labels.ne(ignore_label)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_shrink_to_the_cell_centres_and_the_mask_follows() -> Result<()> {
        let labels = Tensor::from_vec((0u8..16).collect(), (1, 4, 4), &Device::Cpu)?;
        let small = labels_at(&labels, [2, 2])?;
        assert_eq!(small.flatten_all()?.to_vec1::<u8>()?, [5, 7, 13, 15]);
        assert_eq!(valid(&small, 7)?.flatten_all()?.to_vec1::<u8>()?, [1, 0, 1, 1]);
        Ok(())
    }
}
