//! Scale, crop, flip and jitter keep image and labels together.

use dsd_data::{Augmentation, IGNORE, LabelMap, Normalisation, Sample, ScaleRange, normalise};
use dsd_random::Stream;

use crate::{message, ramp};

const PLAIN: Normalisation = Normalisation { mean: [0.0; 3], std: [1.0; 3] };

fn sample(width: usize, height: usize) -> Sample {
    let ids = (0..width * height).map(|at| (at % 11) as u8).collect();
    let labels = LabelMap::new(width, height, ids).expect("sizes fit");
    Sample { name: "s".into(), image: ramp(width, height), labels }
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (index, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= 2e-6, "element {index}: {x} and {y}");
    }
}

#[test]
fn without_randomness_the_sample_comes_back_normalised() {
    let sample = sample(9, 6);
    let norm = Normalisation::IMAGENET;
    let (image, labels) =
        Augmentation::none([6, 9], norm).apply(&sample, &mut Stream::new(0, "a", 0, 0)).expect("applies");
    close(&image, &normalise(&sample.image, &norm));
    assert_eq!(labels, sample.labels.ids);
    // By hand: the second pixel's red is 7.
    assert!((image[1] - (7.0 / 255.0 - 0.485) / 0.229).abs() < 1e-6);
}

#[test]
fn padding_is_right_and_below_zero_and_ignored() {
    let sample = sample(4, 3);
    let norm = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
    let (image, labels) =
        Augmentation::none([5, 6], norm).apply(&sample, &mut Stream::new(0, "a", 0, 0)).expect("applies");
    assert_eq!((image.len(), labels.len()), (3 * 5 * 6, 5 * 6));
    for y in 0..5 {
        for x in 0..6 {
            let inside = x < 4 && y < 3;
            assert_eq!(labels[y * 6 + x] != IGNORE, inside, "({x},{y})");
            if !inside {
                assert!((0..3).all(|c| image[c * 30 + y * 6 + x] == 0.0), "({x},{y})");
            }
        }
    }
}

#[test]
fn a_flip_mirrors_image_and_labels_alike() {
    let sample = sample(7, 5);
    let mut augmentation = Augmentation::none([5, 7], PLAIN);
    let (image, labels) = augmentation.apply(&sample, &mut Stream::new(1, "a", 0, 0)).expect("applies");
    augmentation.flip = 1.0;
    let (flipped, flipped_labels) = augmentation.apply(&sample, &mut Stream::new(1, "a", 0, 0)).expect("applies");
    for row in 0..15 {
        let mirrored: Vec<f32> = image[row * 7..row * 7 + 7].iter().rev().copied().collect();
        assert_eq!(mirrored, flipped[row * 7..row * 7 + 7]);
    }
    for row in 0..5 {
        let mirrored: Vec<u8> = labels[row * 7..row * 7 + 7].iter().rev().copied().collect();
        assert_eq!(mirrored, flipped_labels[row * 7..row * 7 + 7]);
    }
}

#[test]
fn doubling_repeats_labels_and_keeps_a_flat_colour() {
    let mut sample = sample(4, 4);
    sample.image.pixels.fill(51);
    let augmentation =
        Augmentation { scale: ScaleRange { min: 2.0, max: 2.0, step: None }, ..Augmentation::none([8, 8], PLAIN) };
    let (image, labels) = augmentation.apply(&sample, &mut Stream::new(0, "a", 0, 0)).expect("applies");
    close(&image, &[0.2; 192]);
    for y in 0..8 {
        for x in 0..8 {
            assert_eq!(labels[y * 8 + x], sample.labels.ids[y / 2 * 4 + x / 2], "({x},{y})");
        }
    }
}

#[test]
fn image_and_labels_of_a_scaled_crop_show_the_same_place() {
    // Left half black with label 0, right half white with label 1: they must agree but at the edge itself.
    let (width, height) = (40, 30);
    let right = |at: usize| at % width >= width / 2;
    let pixels = (0..width * height).flat_map(|at| [if right(at) { 255 } else { 0 }; 3]).collect();
    let ids = (0..width * height).map(|at| u8::from(right(at))).collect();
    let sample = Sample {
        name: "halves".into(),
        image: dsd_data::RgbImage::new(width, height, pixels).expect("sizes fit"),
        labels: LabelMap::new(width, height, ids).expect("sizes fit"),
    };
    let scale = ScaleRange { min: 0.5, max: 2.0, step: Some(0.25) };
    let augmentation = Augmentation { scale, flip: 0.5, ..Augmentation::none([21, 33], PLAIN) };
    let mut seen = [0usize; 2];
    for index in 0..200 {
        let (image, labels) = augmentation.apply(&sample, &mut Stream::new(3, "a", 0, index)).expect("applies");
        for (value, id) in image.iter().zip(&labels).filter(|(_, id)| **id != IGNORE) {
            assert_eq!(*value > 0.5, *id == 1, "sample {index}: value {value}, label {id}");
            seen[usize::from(*id)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 10_000), "{seen:?}");
}

#[test]
fn jitter_stays_in_range_moves_colours_and_leaves_labels_alone() {
    let sample = sample(16, 12);
    let plain = Augmentation::none([12, 16], PLAIN);
    let strong = Augmentation { brightness: 0.5, contrast: 0.5, saturation: 0.5, ..plain };
    let (before, ids) = plain.apply(&sample, &mut Stream::new(0, "a", 0, 0)).expect("applies");
    let (after, same) = strong.apply(&sample, &mut Stream::new(0, "a", 0, 0)).expect("applies");
    assert_eq!(ids, same);
    assert_ne!(before, after);
    assert!(after.iter().all(|value| (0.0..=1.0).contains(value)));
}

#[test]
fn settings_out_of_range_are_named() {
    let good = Augmentation::none([4, 4], PLAIN);
    let cases = [
        (Augmentation { crop: [0, 4], ..good }, "crop"),
        (Augmentation { flip: 1.5, ..good }, "flip"),
        (Augmentation { contrast: f32::NAN, ..good }, "contrast"),
        (Augmentation { scale: ScaleRange { min: 2.0, max: 1.0, step: None }, ..good }, "scale"),
        (Augmentation { normalisation: Normalisation { mean: [0.0; 3], std: [0.0; 3] }, ..good }, "normalisation"),
    ];
    for (augmentation, name) in cases {
        assert!(message(augmentation.check()).starts_with(name));
    }
}
