//! The memory bank: what is written, what is drawn, and that the same answers give the same bank.

use candle_core::{DType, Device, Tensor};
use dsd_random::Stream;
use dsd_similarity::{MemoryBank, MemoryContrast, memory_contrast};

use super::labels;
use crate::{assert_close, flat, mask, normal, scalar};

/// One image, two channels, three places of the classes 0, 1, 0.
fn image(values: [f64; 6]) -> (Tensor, Tensor) {
    let features = Tensor::from_vec(values.to_vec(), (1, 2, 1, 3), &Device::Cpu).unwrap();
    (features, Tensor::new(&[[[0u8, 1, 0]]], &Device::Cpu).unwrap())
}

#[test]
fn regions_are_unit_means_and_the_queue_goes_round() {
    let mut bank = MemoryBank::new(2, 2, 2, DType::F64).unwrap();
    assert!(bank.is_empty());
    let (features, labels) = image([3., 0., 0., 0., -5., 2.]); // places (3,0), (0,−5), (0,2)
    bank.push_regions(&features, &labels, None).unwrap();
    assert_eq!((bank.len(0), bank.len(1), bank.written.clone()), (1, 1, vec![1, 1]));
    let half = 0.5f64.sqrt();
    assert_close("regions", &flat(&bank.embeddings), &[half, half, 0., 0., 0., -1., 0., 0.], 1e-15);

    let valid = Tensor::new(&[[[1u8, 0, 0]]], &Device::Cpu).unwrap();
    bank.push_regions(&features, &labels, Some(&valid)).unwrap();
    bank.push_regions(&(features * 7.0).unwrap(), &labels, Some(&valid)).unwrap();
    assert_eq!((bank.len(0), bank.written.clone()), (2, vec![3, 1]));
    assert_close("round", &flat(&bank.embeddings), &[1., 0., 1., 0., 0., -1., 0., 0.], 1e-15);
    assert_eq!(bank.len(9), 0);
}

#[test]
fn pixels_are_drawn_without_repetition_and_by_the_answers_given() {
    let features = normal("bank", &[2, 3, 4, 5], 1.0);
    let (labels, valid) = (labels("bank", &[2, 4, 5], 3), mask("bank", &[2, 4, 5], 0.9));
    let filled = |seed| {
        let mut bank = MemoryBank::new(3, 100, 3, DType::F64).unwrap();
        let mut stream = Stream::new(seed, "bank", 0, 0);
        bank.push_pixels(&features, &labels, Some(&valid), 4, &mut |limit| stream.below(limit)).unwrap();
        let sample = bank.sample(5, &mut |limit| stream.below(limit)).unwrap();
        (bank, sample)
    };
    let ((bank, sample), (again, same), (other, _)) = (filled(1), filled(1), filled(2));
    assert_eq!((flat(&bank.embeddings), flat(&sample)), (flat(&again.embeddings), flat(&same)));
    assert_ne!(flat(&bank.embeddings), flat(&other.embeddings));
    assert!(bank.written.iter().all(|&written| written == 8), "4 places of each class and image");
    let rows: Vec<Vec<f64>> = sample.to_vec2().unwrap();
    assert_eq!(rows.len(), 15);
    for (index, row) in rows.iter().enumerate() {
        assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12, "row {index} is no unit vector");
        assert!(rows[..index].iter().all(|earlier| earlier != row), "row {index} was drawn twice");
    }
    // Every place that was written is one of the image's own.
    let all = flat(&bank.sample(100, &mut |_| 0).unwrap());
    assert_eq!(all.len(), 24 * 3);
}

#[test]
fn an_empty_bank_teaches_nothing_and_a_restored_one_the_same() {
    let features = normal("student", &[1, 3, 4, 5], 1.0);
    let teacher = normal("teacher", &[1, 3, 4, 5], 1.0);
    let labels = labels("restored", &[1, 4, 5], 2);
    let mut bank = MemoryBank::new(2, 8, 3, DType::F64).unwrap();
    let loss = |bank: &MemoryBank| {
        let memory = bank.sample(4, &mut |_| 0).unwrap();
        scalar(&memory_contrast(&features, &teacher, &memory, None, MemoryContrast::published()).unwrap())
    };
    assert_eq!(loss(&bank), 0.0);
    bank.push_pixels(&teacher, &labels, None, 3, &mut |limit| limit - 1).unwrap();
    let value = loss(&bank);
    assert!(value > 0.0);
    let restored = MemoryBank { embeddings: bank.embeddings.copy().unwrap(), written: bank.written.clone() };
    bank.push_pixels(&features, &labels, None, 8, &mut |_| 0).unwrap();
    assert_eq!(loss(&restored), value);
    assert_ne!(loss(&bank), value);
}
