//! The moving average of a network's weights, which is what is evaluated and kept where a recipe asks for it.
//!
//! After each update: a = ema · a + (1 − ema) · w, over all parameters and over the running statistics of normalisation
//! alike, as torchvision's reference training does with buffers. The first update copies, so that the initial weights
//! have no part in it (as PyTorch's `AveragedModel`).

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use dsd_kernels::optimiser::average_step;
use dsd_models::{ModelConfig, ParamStore};

use crate::{Error, Result};

/// A second set of weights that follows the trained one.
#[derive(Debug)]
pub(crate) struct Average {
    keep: f64,
    store: ParamStore,
}

impl Average {
    /// The average of the weights of such a network, of which `keep` stays at each update.
    ///
    /// # Errors
    /// Those of building the network.
    pub(crate) fn new(keep: f64, config: &ModelConfig, num_classes: usize) -> Result<Self> {
        let store = ParamStore::new(0, DType::F32, &Device::Cpu);
        dsd_models::build(config, num_classes, store.builder())?;
        Ok(Self { keep, store })
    }

    /// The averaged weights.
    pub(crate) fn store(&self) -> &ParamStore {
        &self.store
    }

    /// Takes in the weights after an update, counted from 1.
    ///
    /// # Errors
    /// [`Error::Setting`] where the weights are another network's.
    pub(crate) fn follow(&self, weights: &ParamStore, update: u64) -> Result<()> {
        let blend = Blend { keep: if update == 1 { 0.0 } else { self.keep } };
        let (averages, weights) = (self.store.tensors(), weights.tensors());
        same_names(&averages, &weights)?;
        for (average, weight) in averages.values().zip(weights.values()) {
            average.inplace_op2(weight, &blend)?;
        }
        Ok(())
    }
}

fn same_names(averages: &BTreeMap<String, Tensor>, weights: &BTreeMap<String, Tensor>) -> Result<()> {
    if averages.keys().eq(weights.keys()) {
        return Ok(());
    }
    Err(Error::Setting("the moving average is of another network".to_string()))
}

/// One tensor's step, in place.
struct Blend {
    keep: f64,
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        average_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<()> {
        let strided = || candle_core::Error::Msg("moving average: a weight is strided".to_string());
        let (to_start, to_end) = average_layout.contiguous_offsets().ok_or_else(strided)?;
        let (start, end) = weight_layout.contiguous_offsets().ok_or_else(strided)?;
        match (average, weight) {
            (CpuStorage::F32(average), CpuStorage::F32(weight)) => {
                average_step(&mut average[to_start..to_end], &weight[start..end], self.keep)
                    .map_err(candle_core::Error::wrap)
            }
            _ => Err(candle_core::Error::Msg("moving average: expected f32".to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_starts_at_the_first_update_and_covers_running_statistics() {
        let config = crate::recipe::Recipe::read("smoke", &[]).unwrap().student.model.config().unwrap();
        let weights = ParamStore::new(5, DType::F32, &Device::Cpu);
        dsd_models::build(&config, 3, weights.builder()).unwrap();
        let average = Average::new(0.75, &config, 3).unwrap();
        let first = |store: &ParamStore, ending: &str| {
            let tensors = store.tensors();
            let (_, tensor) = tensors.iter().find(|(name, _)| name.ends_with(ending)).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
        };
        let fill = |value: f64| {
            let filled = |tensor: &Tensor| tensor.ones_like().unwrap().affine(value, 0.0).unwrap();
            weights.apply(&weights.tensors().iter().map(|(name, t)| (name.clone(), filled(t))).collect()).unwrap();
        };
        for (update, value, expected) in [(1, 4.0, 4.0), (2, 8.0, 5.0), (3, 1.0, 4.0)] {
            fill(value);
            average.follow(&weights, update).unwrap();
            for ending in [".weight", ".running_mean", ".running_var"] {
                assert_eq!(first(average.store(), ending), expected, "{ending}, update {update}");
            }
        }
    }
}
