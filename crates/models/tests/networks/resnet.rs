//! Facts about dilation that no shape shows.

use candle_core::{DType, Device, Tensor};
use dsd_models::backbone::{Backbone, ResNet, ResNetConfig, ResNetDepth, Stem};
use dsd_models::{Mode, ParamStore};

use super::images;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Every `step`-th row and column.
fn subsampled(x: &Tensor, step: usize) -> Tensor {
    let pick = |x: &Tensor, axis: usize| {
        let every: Vec<u32> = (0..x.dims()[axis] as u32).step_by(step).collect();
        x.index_select(&Tensor::new(every, &Device::Cpu).unwrap(), axis).unwrap()
    };
    pick(&pick(x, 2), 3)
}

/// Dilation is right when a network that keeps its resolution computes, at the positions that striding would have
/// left, just what the striding network computes with the same weights.
#[test]
fn a_dilated_network_agrees_with_the_strided_one_where_both_have_a_position() {
    for depth in [ResNetDepth::ResNet18, ResNetDepth::ResNet34, ResNetDepth::ResNet50] {
        for stem in [Stem::Classic, Stem::Deep] {
            let store = ParamStore::new(2, DType::F64, &Device::Cpu);
            let network = |output_stride| {
                ResNet::new(&ResNetConfig { depth, stem, output_stride, width: 0.0625 }, store.builder()).unwrap()
            };
            let x = images(1, 81, 103).to_dtype(DType::F64).unwrap();
            let strided = network(32);
            assert_eq!(strided.strides(), [4, 8, 16, 32]);
            let reference = strided.forward(&x, Mode::Eval).unwrap();
            for (output_stride, strides) in [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16])] {
                let dilated = network(output_stride);
                assert_eq!(dilated.strides(), strides);
                assert_eq!(dilated.out_channels(), strided.out_channels());
                let features = dilated.forward(&x, Mode::Eval).unwrap();
                for (feature, expected) in features.iter().zip(&reference) {
                    let got = subsampled(&feature.tensor, expected.stride / feature.stride);
                    assert_eq!(got.dims(), expected.tensor.dims());
                    for (got, expected) in values(&got).iter().zip(values(&expected.tensor)) {
                        let tolerance = 1e-12 + 1e-10 * expected.abs();
                        assert!((got - expected).abs() <= tolerance, "{depth:?} {}: {got} {expected}", feature.name);
                    }
                }
            }
        }
    }
}
