//! The stored form of an evaluation.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dsd_metrics::{ConfusionMatrix, Error, Summary};

/// Names whose alphabetical order is not their class order.
const CLASSES: [&str; 3] = ["sky", "car", "bicyclist"];

fn summary(labels: &[u8], predictions: &[u8]) -> Summary {
    let mut matrix = ConfusionMatrix::new(3).unwrap();
    matrix.update(labels, predictions, 255).unwrap();
    matrix.summary(&CLASSES).unwrap()
}

#[test]
fn json_has_fractions_in_class_order_and_null_for_absent_classes() {
    let summary = summary(&[0, 0, 2, 255], &[0, 2, 2, 1]);
    let json = serde_json::to_string(&summary).unwrap();
    let expected = concat!(
        r#"{"miou":0.5,"pixel_accuracy":0.6666666666666666,"mean_accuracy":0.75,"frequency_weighted_iou":0.5,"#,
        r#""iou":{"sky":0.5,"car":null,"bicyclist":0.5}}"#
    );
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
    assert_eq!((summary.iou.get("sky"), summary.iou.get("car"), summary.iou.get("bus")), (Some(0.5), None, None));
}

#[test]
fn without_a_counted_pixel_every_value_is_null() {
    let json = serde_json::to_value(summary(&[255], &[0])).unwrap();
    let null = serde_json::Value::Null;
    for pointer in
        ["/miou", "/pixel_accuracy", "/mean_accuracy", "/frequency_weighted_iou", "/iou/sky", "/iou/bicyclist"]
    {
        assert_eq!(json.pointer(pointer), Some(&null), "{pointer}");
    }
}

#[test]
fn names_must_be_as_many_as_classes_and_different() {
    let matrix = ConfusionMatrix::new(2).unwrap();
    assert_eq!(matrix.summary(&["a"]).unwrap_err(), Error::NameCount { expected: 2, got: 1 });
    assert_eq!(matrix.summary(&["a", "a"]).unwrap_err(), Error::NameTwice { name: "a".to_string() });
}
