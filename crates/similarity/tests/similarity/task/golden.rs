//! The structural similarity loss on a worked example: two classes on 4 × 4 pixels, one ignored.

use candle_core::{Device, Tensor};
use dsd_similarity::{Deviation, EntropyMean, Mining, Padding, Ssl, ssl, structure_error};

use super::super::{assert_close, flat, normal, scalar};
use super::{IGNORED, labels};

/// Half a unit of the eighth decimal.
const DIGITS: f64 = 5.1e-9;
/// The written values took the rounding of g∗y² − μ² in flat windows for a variance: √2e-16 beside C₄ = 0.01.
const FLAT_WINDOWS: f64 = 2e-6;

fn golden(padding: Padding, mining: Mining) -> Ssl {
    Ssl { padding, mining, variance_floor: 0.0, ..Ssl::paper_reading() }
}

fn example() -> (Tensor, Tensor) {
    let values: Vec<f64> = (0..32).map(|index| 2.0 * (0.7 * f64::from(index) + 1.0).sin()).collect();
    let ids = [[0u8, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, IGNORED]];
    (Tensor::from_vec(values, (1, 2, 4, 4), &Device::Cpu).unwrap(), Tensor::new(&[ids], &Device::Cpu).unwrap())
}

fn mined(errors: &[f64], threshold: f64) -> usize {
    errors.iter().filter(|&&error| error > threshold).count()
}

#[test]
fn parts_and_total_have_the_written_values() {
    let (logits, ids) = example();
    for (padding, per_map, count, structure, total) in [
        (Padding::Replicate, false, 27, 1.71569667, 1.88192518),
        (Padding::Replicate, true, 27, 1.71569667, 1.88192518),
        (Padding::Zero, false, 26, 1.87341841, 1.96078605),
        (Padding::Zero, true, 27, 1.80546438, 1.92680903),
    ] {
        let name = format!("{padding:?}, per map {per_map}");
        let mining = if per_map { Mining::Map { share: 0.1 } } else { Mining::Batch { share: 0.1 } };
        let cfg = golden(padding, mining);
        let value = |lambda: f64| scalar(&ssl(&logits, &ids, IGNORED, Ssl { lambda, ..cfg }).unwrap());
        assert_close(&name, &[value(1.0)], &[2.04815369], DIGITS);
        assert_close(&name, &[value(0.0), value(0.5)], &[structure, total], FLAT_WINDOWS);

        let errors = flat(&structure_error(&logits, &ids, IGNORED, cfg).unwrap());
        let greatest = errors.iter().fold(0f64, |greatest, &error| greatest.max(error));
        assert_close(&name, &[greatest], &[2.60054042], DIGITS);
        let of_maps = errors.chunks(16).map(|map| {
            let own = map.iter().fold(0f64, |own, &error| own.max(error));
            mined(map, 0.1 * if per_map { own } else { greatest })
        });
        assert_eq!(of_maps.sum::<usize>(), count, "{name}");
    }
    let cfg = Ssl { entropy_mean: EntropyMean::Elements, lambda: 1.0, ..Ssl::paper_reading() };
    assert_close("elements", &[scalar(&ssl(&logits, &ids, IGNORED, cfg).unwrap())], &[1.02407685], DIGITS);
}

#[test]
fn errors_have_the_written_values() {
    let (logits, ids) = example();
    let cfg = golden(Padding::Replicate, Mining::Batch { share: 0.1 });
    let errors = flat(&structure_error(&logits, &ids, IGNORED, cfg).unwrap());
    assert_close("class 0", &errors[..4], &[0.36054539, 0.11224969, 1.43367471, 0.85366234], FLAT_WINDOWS);
    assert_close("class 1", &errors[16..20], &[1.86524258, 1.01598901, 0.11698957, 0.29849787], FLAT_WINDOWS);
    assert_eq!((errors[15], errors[31]), (0.0, 0.0), "the ignored pixel");
}

/// Logits of ±30 for the label of each pixel, or for the other one.
fn certain(ids: &Tensor, right: bool) -> Tensor {
    let sign = if right { 30.0 } else { -30.0 };
    let ids = ids.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let of_class = |class: u8| ids.iter().map(move |&id| if id == class { sign } else { -sign }).collect::<Vec<f64>>();
    Tensor::from_vec([of_class(0), of_class(1)].concat(), (1, 2, 4, 4), &Device::Cpu).unwrap()
}

#[test]
fn inverted_labels_cost_what_is_written_and_right_ones_nothing() {
    let (_, ids) = example();
    let cfg = Ssl { lambda: 0.0, ..golden(Padding::Replicate, Mining::Batch { share: 0.1 }) };
    let inverted = certain(&ids, false);
    assert_close("inverted", &[scalar(&ssl(&inverted, &ids, IGNORED, cfg).unwrap())], &[37.46050614], DIGITS);
    let errors = flat(&structure_error(&inverted, &ids, IGNORED, cfg).unwrap());
    let greatest = errors.iter().fold(0f64, |greatest, &error| greatest.max(error));
    assert_eq!(mined(&errors, 0.1 * greatest), 24);
    // Rounding has a greatest error, too; it is not mined.
    assert_eq!(scalar(&ssl(&certain(&ids, true), &ids, IGNORED, cfg).unwrap()), 0.0);
}

#[test]
fn errors_stay_within_their_bound_and_vanish_where_both_windows_are_flat() {
    let bounds = [(1.5, 4.803), (1e6, 5.657)];
    for (window_std, bound) in bounds {
        let cfg = Ssl { window_std, ..Ssl::paper_reading() };
        assert!((cfg.greatest_error() - bound).abs() < 5e-4, "{}", cfg.greatest_error());
    }
    for index in 0..20 {
        let logits = normal(&format!("bound {index}"), &[1, 3, 8, 9], 0.5 * f64::from(index * index));
        let ids = labels(&format!("bound {index}"), &[1, 8, 9], 3, 0.1);
        for padding in [Padding::Replicate, Padding::Zero, Padding::Valid] {
            for deviation in [Deviation::Window, Deviation::WindowOfDeviations] {
                let cfg = Ssl { padding, deviation, variance_floor: 0.0, ..Ssl::paper_reading() };
                let errors = flat(&structure_error(&logits, &ids, IGNORED, cfg).unwrap());
                assert!(errors.iter().all(|&error| error <= cfg.greatest_error()), "{padding:?} {deviation:?} {index}");
            }
        }
    }
    // The left half is labelled 0, the right half 1; the prediction is 1 everywhere and sure.
    let ids: Vec<u8> = (0..48).map(|pixel| u8::from(pixel % 8 >= 4)).collect();
    let ids = Tensor::from_vec(ids, (1, 6, 8), &Device::Cpu).unwrap();
    let sure = Tensor::cat(
        &[
            Tensor::full(-9f64, (1, 1, 6, 8), &Device::Cpu).unwrap(),
            Tensor::full(9f64, (1, 1, 6, 8), &Device::Cpu).unwrap(),
        ],
        1,
    );
    let errors = flat(&structure_error(&sure.unwrap(), &ids, IGNORED, Ssl::paper_reading()).unwrap());
    for (element, error) in errors.iter().enumerate() {
        let at_the_edge = matches!(element % 8, 3 | 4);
        assert_eq!(*error > 1e-6, at_the_edge, "element {element}: {error}");
    }
}
