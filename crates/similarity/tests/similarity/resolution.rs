//! The weight of the resolution-normalised PSD does not depend on the size of the crop.

use candle_core::{Device, Tensor};
use dsd_similarity::{Psd, PsdReduction, REFERENCE_POSITIONS, psd};

use super::scalar;

/// A smooth field on the unit square, sampled at the centres of H×W cells; `phase` tells channels and networks apart.
fn smooth_layer(height: usize, width: usize, channels: usize, phase: f64) -> Tensor {
    let mut values = Vec::new();
    for channel in 0..channels {
        for row in 0..height {
            for column in 0..width {
                let (y, x) = ((row as f64 + 0.5) / height as f64, (column as f64 + 0.5) / width as f64);
                let frequency = 2.0 + channel as f64;
                values.push((frequency * x * 3.0 + phase).sin() + (frequency * y * 2.0 - 2.0 * phase).cos());
            }
        }
    }
    Tensor::from_vec(values, (1, channels, height, width), &Device::Cpu).unwrap()
}

fn loss(height: usize, width: usize, reduction: PsdReduction) -> f64 {
    let network = |channels: usize, phase: f64| -> Vec<Tensor> {
        (0..3).map(|layer| smooth_layer(height, width, channels + layer, phase + layer as f64)).collect()
    };
    let cfg = Psd { reduction, ..Psd::paper_reading() };
    scalar(&psd(&network(2, 0.3), &network(4, 1.1), None, cfg).unwrap())
}

const SIZES: [(usize, usize); 4] = [(16, 32), (32, 64), (48, 96), (64, 128)];

#[test]
fn the_normalised_value_is_stable_over_resolutions() {
    let reference = loss(32, 64, PsdReduction::ResolutionNormalised);
    assert!(reference > 0.0);
    for (height, width) in SIZES {
        for reduction in [PsdReduction::ResolutionNormalised, PsdReduction::SquaredSum, PsdReduction::Norm] {
            let ratio = loss(height, width, reduction) / loss(32, 64, reduction);
            assert!((ratio - 1.0).abs() < 0.2, "{reduction:?} at {height}×{width}: {ratio} of 32×64");
        }
    }
}

#[test]
fn the_published_mean_shrinks_with_the_number_of_positions() {
    let ratio = loss(16, 32, PsdReduction::SquaredMean) / loss(64, 128, PsdReduction::SquaredMean);
    assert!((ratio / 16.0 - 1.0).abs() < 0.2, "16 times the positions: {ratio}");
}

#[test]
fn on_the_reference_grid_the_normalised_value_is_the_published_one() {
    let (normalised, mean) =
        (loss(65, 65, PsdReduction::ResolutionNormalised), loss(65, 65, PsdReduction::SquaredMean));
    assert!((normalised / mean - 1.0).abs() < 1e-12, "{normalised} and {mean}");
    for (height, width) in SIZES {
        let positions = (height * width) as f64;
        let expected = loss(height, width, PsdReduction::SquaredMean) * positions / REFERENCE_POSITIONS;
        let normalised = loss(height, width, PsdReduction::ResolutionNormalised);
        assert!((normalised / expected - 1.0).abs() < 1e-12, "{height}×{width}: {normalised} and {expected}");
    }
}
