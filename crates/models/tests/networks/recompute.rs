//! Blocks that are computed again in the backward pass give what those give that are kept: results and statistics to the
//! bit, gradients up to the order in which contributions to one tensor are added.

use candle_core::{DType, Device, Tensor};
use dsd_models::{Mode, ModelConfig, ParamStore, variants, with_recomputed_blocks};
use dsd_random::Stream;

use crate::small;

/// The logits, all running statistics and all gradients after one training step's passes.
fn pass(config: &ModelConfig, again: bool) -> Vec<(String, Vec<f32>)> {
    let store = ParamStore::new(3, DType::F32, &Device::Cpu);
    let network = dsd_models::build(config, 5, store.builder()).unwrap();
    let mut stream = Stream::new(3, "images", 0, 0);
    let values: Vec<f32> = (0..2 * 3 * 49 * 65).map(|_| stream.normal() as f32).collect();
    let images = Tensor::from_vec(values, (2, 3, 49, 65), &Device::Cpu).unwrap();
    let forward = || network.forward(&images, Mode::Train { seed: 3, step: 7 }).unwrap();
    let output = if again { with_recomputed_blocks(forward) } else { forward() };
    let gradients = dsd_ops::backward(&output.logits.sqr().unwrap().mean_all().unwrap()).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut all = vec![("logits".to_string(), values(&output.logits))];
    all.extend(store.buffers().iter().map(|(name, tensor)| (name.clone(), values(tensor))));
    for parameter in store.parameters() {
        if let Some(gradient) = gradients.get(parameter.var.as_tensor()) {
            all.push((format!("gradient of {}", parameter.name), values(gradient)));
        }
    }
    all
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn recomputed_blocks_change_nothing_but_the_order_of_sums() {
    for variant in variants() {
        let (name, config) = (variant.name, small(variant.config));
        let (kept, again) = (pass(&config, false), pass(&config, true));
        assert_eq!(kept.len(), again.len(), "{name}");
        let gradients = kept.iter().filter(|(what, _)| what.starts_with("gradient of "));
        let greatest = gradients.map(|(_, values)| norm(values.iter().copied())).fold(0.0, f64::max);
        for ((what, one), (_, other)) in kept.iter().zip(&again) {
            if what.starts_with("gradient of ") {
                let difference = norm(one.iter().zip(other).map(|(a, b)| a - b));
                // Some gradients are 0 but for rounding: measured against the greatest of the network too.
                assert!(difference <= 1e-4 * norm(one.iter().copied()) + 1e-6 * greatest, "{name}: {what}");
            } else {
                assert!(one == other, "{name}: {what} differs");
            }
        }
    }
}
