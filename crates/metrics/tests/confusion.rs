//! Facts about the confusion matrix that can be counted by hand or by a slower program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dsd_metrics::{AbsentClass, ConfusionMatrix, Error};
use dsd_random::Stream;

const IGNORED: u8 = 255;

fn close(value: Option<f64>, expected: f64) {
    let value = value.unwrap();
    assert!((value - expected).abs() <= 1e-15, "got {value}, expected {expected}");
}

#[test]
fn a_matrix_counted_by_hand() {
    // label 0: two right, one taken for 1; label 1: one right; label 2: one taken for 0; one pixel ignored.
    let mut matrix = ConfusionMatrix::new(4).unwrap();
    matrix.update(&[0, 0, 0, 1, 2, 255], &[0, 0, 1, 1, 0, 3], IGNORED).unwrap();
    assert_eq!(matrix.counts(), [2, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(matrix.row(0), [2, 1, 0, 0]);
    assert_eq!(matrix.column(0).collect::<Vec<_>>(), [2, 0, 1, 0]);
    assert_eq!((matrix.counted_pixels(), matrix.num_classes()), (5, 4));
    assert!(matrix.row(4).is_empty() && matrix.column(4).next().is_none());

    assert_eq!(matrix.iou(), [Some(0.5), Some(0.5), Some(0.0), None]);
    assert_eq!(matrix.accuracy(), [Some(2.0 / 3.0), Some(1.0), Some(0.0), None]);
    close(matrix.miou(AbsentClass::Skip), 1.0 / 3.0);
    close(matrix.miou(AbsentClass::Zero), 0.25);
    close(matrix.miou(AbsentClass::One), 0.5);
    close(matrix.mean_accuracy(), 5.0 / 9.0);
    close(matrix.pixel_accuracy(), 0.6);
    close(matrix.frequency_weighted_iou(), (3.0 * 0.5 + 0.5) / 5.0);
}

#[test]
fn the_rule_for_absent_classes_changes_the_score_as_published_comparisons_show() {
    // Three classes with IoU 8052 / (8052 + 4 · 7987) = 0.2013 each, and a fourth that is nowhere.
    let (mut labels, mut predictions) = (vec![IGNORED; 100], vec![3_u8; 100]);
    for label in 0..3 {
        for prediction in 0..3 {
            let count = if label == prediction { 8052 } else { 7987 };
            labels.extend(std::iter::repeat_n(label, count));
            predictions.extend(std::iter::repeat_n(prediction, count));
        }
    }
    let mut matrix = ConfusionMatrix::new(4).unwrap();
    matrix.update(&labels, &predictions, IGNORED).unwrap();
    assert_eq!(matrix.iou()[3], None, "predictions at ignored pixels make no class present");
    for (policy, expected) in [(AbsentClass::Skip, 0.2013), (AbsentClass::One, 0.4010), (AbsentClass::Zero, 0.1510)] {
        let miou = matrix.miou(policy).unwrap();
        assert!((miou - expected).abs() < 5e-5, "{policy:?}: {miou}, expected {expected}");
    }
    assert_eq!(AbsentClass::default(), AbsentClass::Skip);
}

#[test]
fn a_class_that_is_only_predicted_or_only_labelled_is_present_with_zero() {
    for (label, prediction) in [(0, 1), (1, 0)] {
        let mut matrix = ConfusionMatrix::new(3).unwrap();
        matrix.update(&[label, 2], &[prediction, 2], IGNORED).unwrap();
        assert_eq!(matrix.iou(), [Some(0.0), Some(0.0), Some(1.0)]);
        close(matrix.mean_accuracy(), 0.5);
    }
}

#[test]
fn without_a_counted_pixel_there_is_no_number() {
    let mut matrix = ConfusionMatrix::new(2).unwrap();
    matrix.update(&[], &[], IGNORED).unwrap();
    matrix.update(&[IGNORED; 3], &[0, 1, 1], IGNORED).unwrap();
    for policy in [AbsentClass::Skip, AbsentClass::Zero, AbsentClass::One] {
        assert_eq!(matrix.miou(policy), None, "{policy:?}");
    }
    assert_eq!(matrix.iou(), [None, None]);
    assert_eq!((matrix.mean_accuracy(), matrix.pixel_accuracy(), matrix.frequency_weighted_iou()), (None, None, None));
    assert_eq!(matrix, ConfusionMatrix::new(2).unwrap());
}

#[test]
fn a_class_may_be_the_ignored_label_and_all_256_ids_may_be_classes() {
    let mut matrix = ConfusionMatrix::new(2).unwrap();
    matrix.update(&[0, 1, 1], &[1, 1, 0], 0).unwrap();
    assert_eq!(matrix.counts(), [0, 0, 1, 1]);

    let ids: Vec<u8> = (0..=255).collect();
    let mut matrix = ConfusionMatrix::new(256).unwrap();
    matrix.update(&ids, &ids, IGNORED).unwrap();
    assert_eq!((matrix.counted_pixels(), matrix.miou(AbsentClass::Skip)), (255, Some(1.0)));
}

#[test]
fn ten_thousand_random_maps_are_counted_exactly_in_any_split() {
    let deep = std::env::var_os("DSD_DEEP").is_some();
    let maps_each = if deep { 250_000 } else { 2500 };
    let mut stream = Stream::new(11, "confusion", 0, 0);
    let mut maps = 0;
    for num_classes in [1, 2, 11, 19] {
        let mut truth = vec![0_u64; num_classes * num_classes];
        let mut whole = ConfusionMatrix::new(num_classes).unwrap();
        let mut parts = vec![ConfusionMatrix::new(num_classes).unwrap(); 3];
        let (mut all_labels, mut all_predictions) = (Vec::new(), Vec::new());
        for _ in 0..maps_each {
            let pixels = stream.below(60);
            let mut draw = |ignored: f64| -> Vec<u8> {
                let id = |stream: &mut Stream| {
                    if stream.chance(ignored) { IGNORED } else { stream.below(num_classes) as u8 }
                };
                (0..pixels).map(|_| id(&mut stream)).collect()
            };
            let (labels, predictions) = (draw(0.2), draw(0.0));
            for label in 0..num_classes {
                for prediction in 0..num_classes {
                    let both = |&(&l, &p): &(&u8, &u8)| usize::from(l) == label && usize::from(p) == prediction;
                    truth[label * num_classes + prediction] +=
                        labels.iter().zip(&predictions).filter(both).count() as u64;
                }
            }
            whole.update(&labels, &predictions, IGNORED).unwrap();
            parts[stream.below(3)].update(&labels, &predictions, IGNORED).unwrap();
            all_labels.extend(labels);
            all_predictions.extend(predictions);
            maps += 1;
        }
        assert_eq!(whole.counts(), truth, "{num_classes} classes");
        let mut merged = ConfusionMatrix::new(num_classes).unwrap();
        for part in parts.iter().rev() {
            merged.merge(part).unwrap();
        }
        assert_eq!(merged, whole, "{num_classes} classes, three parts");
        let mut at_once = ConfusionMatrix::new(num_classes).unwrap();
        at_once.update(&all_labels, &all_predictions, IGNORED).unwrap();
        assert_eq!(at_once, whole, "{num_classes} classes, one batch");
    }
    assert_eq!(maps, 4 * maps_each);
    println!("figure N5 random_label_maps {maps}");
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let mut matrix = ConfusionMatrix::new(3).unwrap();
    let mut refused = |labels: &[u8], predictions: &[u8], expected: &str| {
        let error = matrix.update(labels, predictions, IGNORED).unwrap_err();
        assert_eq!(error.to_string(), format!("confusion matrix: {expected}"));
        assert_eq!(matrix.counted_pixels(), 0);
    };
    refused(&[0, 1], &[0], "predictions has 1 pixels, expected 2 as labels has");
    refused(
        &[0, 255, 3],
        &[0, 0, 0],
        "labels has value 3 at position 2, expected less than 3 or the ignored label 255",
    );
    refused(&[0, 1, 1], &[0, 7, 0], "predictions has value 7 at position 1, expected less than 3");
    refused(&[0, 255], &[0, 255], "predictions has value 255 at position 1, expected less than 3");

    let other = ConfusionMatrix::new(4).unwrap();
    assert_eq!(matrix.merge(&other).unwrap_err().to_string(), "confusion matrix: other has 4 classes, expected 3");
    for got in [0, 257] {
        assert_eq!(ConfusionMatrix::new(got).unwrap_err(), Error::NumClasses { got });
    }
}
