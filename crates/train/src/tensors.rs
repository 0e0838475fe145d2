//! Where plain arrays of `data` become tensors.

use candle_core::{Device, Tensor};
use dsd_data::Batch;
use dsd_models::Normalisation;

use crate::Result;

/// The images `[N,3,H,W]` f32 and labels `[N,H,W]` u8 of a batch; takes the arrays without a copy.
pub(crate) fn from_batch(batch: Batch, device: &Device) -> Result<(Tensor, Tensor)> {
    let Batch { images, labels, count, height, width, .. } = batch;
    let images = Tensor::from_vec(images, (count, 3, height, width), device)?;
    let labels = Tensor::from_vec(labels, (count, height, width), device)?;
    Ok((images, labels))
}

/// Images `[N,3,H,W]` that were scaled for one network, as another one expects them; untouched where that is the same.
///
/// x = (v − m)/s and y = (v − m′)/s′ give y = x · s/s′ + (m − m′)/s′, per channel.
pub(crate) fn renormalised(images: &Tensor, from: &Normalisation, to: &Normalisation) -> Result<Tensor> {
    if from == to {
        return Ok(images.clone());
    }
    let per_channel = |value: &dyn Fn(usize) -> f64| {
        let values: [f32; 3] = std::array::from_fn(|channel| value(channel) as f32);
        Tensor::from_slice(&values, (1, 3, 1, 1), images.device())
    };
    let wide = |value: f32| f64::from(value);
    let scale = per_channel(&|c| wide(from.std[c]) / wide(to.std[c]))?;
    let shift = per_channel(&|c| (wide(from.mean[c]) - wide(to.mean[c])) / wide(to.std[c]))?;
    Ok(images.broadcast_mul(&scale)?.broadcast_add(&shift)?)
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
    fn images_change_from_one_scale_to_another_and_stay_the_same_bits_where_it_is_one() -> Result<()> {
        let one = Normalisation { mean: [0.4, 0.5, 0.6], std: [0.2, 0.25, 0.3] };
        let other = Normalisation { mean: [0.48, 0.46, 0.41], std: [0.004, 0.5, 1.0] };
        let values = [0.0f32, 0.25, 1.0, 0.7, 0.5, 0.125];
        let scaled = |by: &Normalisation| {
            let scaled = values.iter().enumerate().map(|(i, value)| (value - by.mean[i / 2]) / by.std[i / 2]).collect();
            Tensor::from_vec(scaled, (1, 3, 1, 2), &Device::Cpu)
        };
        let plain = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (found, expected) = (plain(&renormalised(&scaled(&one)?, &one, &other)?)?, plain(&scaled(&other)?)?);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{found} against {expected}");
        }
        let same = renormalised(&scaled(&one)?, &one, &one.clone())?;
        assert_eq!(plain(&same)?, plain(&scaled(&one)?)?);
        Ok(())
    }

    #[test]
    fn labels_shrink_to_the_cell_centres_and_the_mask_follows() -> Result<()> {
        let labels = Tensor::from_vec((0u8..16).collect(), (1, 4, 4), &Device::Cpu)?;
        let small = labels_at(&labels, [2, 2])?;
        assert_eq!(small.flatten_all()?.to_vec1::<u8>()?, [5, 7, 13, 15]);
        assert_eq!(valid(&small, 7)?.flatten_all()?.to_vec1::<u8>()?, [1, 0, 1, 1]);
        Ok(())
    }
}
