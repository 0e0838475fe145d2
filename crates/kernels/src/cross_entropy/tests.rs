//! Cross-entropy against its formula in f64, with ignored pixels and extreme logits.

use dsd_random::Stream;

use super::*;

fn random(count: usize, deviation: f64) -> Vec<f64> {
    let mut stream = Stream::new(4, "cross entropy test", 0, 0);
    (0..count).map(|_| f64::from((deviation * stream.normal()) as f32)).collect()
}

fn labels(sizes: Sizes, ignored_share: f64) -> Vec<u8> {
    let mut stream = Stream::new(4, "cross entropy labels", 0, 0);
    (0..sizes.pixels())
        .map(|_| if stream.chance(ignored_share) { 255 } else { stream.below(sizes.classes) as u8 })
        .collect()
}

fn run<T: Element>(sizes: Sizes, logits: &[f64], labels: &[u8], weighting: Weighting<'_>, g: f64) -> (f64, Vec<T>) {
    let logits: Vec<T> = logits.iter().map(|value| T::from_f64(*value)).collect();
    let found = forward(sizes, &logits, labels, weighting).unwrap();
    let mut gradient = vec![T::from_f64(f64::NAN); logits.len()];
    backward(sizes, &logits, labels, weighting, &found, g, &mut gradient).unwrap();
    (found.loss, gradient)
}

/// The two formulas of the module's page, pixel by pixel.
fn plain(sizes: Sizes, logits: &[f64], labels: &[u8], weighting: Weighting<'_>, g: f64) -> (f64, Vec<f64>) {
    let pixels = sizes.height * sizes.width;
    let weight: f64 = labels.iter().map(|label| weighting.of(*label)).sum();
    let (mut loss, mut gradient) = (0.0, vec![0.0; logits.len()]);
    for (index, label) in labels.iter().enumerate() {
        if *label == weighting.ignore_label {
            continue;
        }
        let place = |c: usize| (index / pixels * sizes.classes + c) * pixels + index % pixels;
        let largest = (0..sizes.classes).map(|c| logits[place(c)]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..sizes.classes).map(|c| (logits[place(c)] - largest).exp()).sum();
        let own = weighting.of(*label) / weight;
        loss += own * (sum.ln() + largest - logits[place(usize::from(*label))]);
        for c in 0..sizes.classes {
            let hit = if c == usize::from(*label) { 1.0 } else { 0.0 };
            gradient[place(c)] = g * own * ((logits[place(c)] - largest).exp() / sum - hit);
        }
    }
    (loss, gradient)
}

#[test]
fn both_types_agree_with_the_formulas() {
    let mut cases = 0;
    for (batch, classes, height, width) in
        [(1, 1, 1, 1), (1, 2, 1, 3), (2, 11, 7, 9), (1, 19, 16, 16), (3, 5, 17, 31), (1, 256, 3, 5), (2, 300, 2, 3)]
    {
        let sizes = Sizes { batch, classes, height, width };
        let logits = random(sizes.planes().elements(), 4.0);
        let mut labels = labels(Sizes { classes: classes.min(255), ..sizes }, 0.2);
        labels[0] = 0;
        let weights: Vec<f64> = (0..classes).map(|c| 0.5 + c as f64).collect();
        for class_weights in [None, Some(weights.as_slice())] {
            let weighting = Weighting { ignore_label: 255, class_weights };
            let (loss, gradient) = plain(sizes, &logits, &labels, weighting, 0.75);
            let double = run::<f64>(sizes, &logits, &labels, weighting, 0.75);
            let single = run::<f32>(sizes, &logits, &labels, weighting, 0.75);
            assert!((double.0 - loss).abs() <= 1e-13 * loss.max(1.0), "{sizes:?}: {} instead of {loss}", double.0);
            assert!((single.0 - loss).abs() <= 1e-6 * loss.max(1.0), "{sizes:?}: {} instead of {loss}", single.0);
            // A gradient is a difference of two shares of a pixel's weight.
            let total: f64 = labels.iter().map(|label| weighting.of(*label)).sum();
            let largest = labels.iter().map(|label| weighting.of(*label)).fold(0.0, f64::max) / total;
            for (index, expected) in gradient.iter().enumerate() {
                assert!((double.1[index] - expected).abs() <= 1e-13 * largest, "{sizes:?} f64 gradient {index}");
                let got = f64::from(single.1[index]);
                assert!((got - expected).abs() <= 1e-6 * largest, "{sizes:?} gradient {index}: {got} not {expected}");
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 14);
}

#[test]
fn two_pixels_by_hand() {
    // Softmax of (0, ln 3) is (¼, ¾); both pixels have it, labels 1 and 0.
    let sizes = Sizes { batch: 1, classes: 2, height: 1, width: 2 };
    let logits = [0.0, 0.0, 3f64.ln(), 3f64.ln()];
    let even = Weighting { ignore_label: 255, class_weights: None };
    let (loss, gradient) = run::<f64>(sizes, &logits, &[1, 0], even, 1.0);
    assert!((loss - ((4.0f64 / 3.0).ln() + 4f64.ln()) / 2.0).abs() < 1e-15);
    for (got, expected) in gradient.iter().zip([0.125, -0.375, -0.125, 0.375]) {
        assert!((got - expected).abs() < 1e-15, "{gradient:?}");
    }
    // Weight 3 for class 0: (1 · ln 4/3 + 3 · ln 4) / 4.
    let weighting = Weighting { ignore_label: 255, class_weights: Some(&[3.0, 1.0]) };
    let (loss, _) = run::<f64>(sizes, &logits, &[1, 0], weighting, 1.0);
    assert!((loss - ((4.0f64 / 3.0).ln() + 3.0 * 4f64.ln()) / 4.0).abs() < 1e-15);
}

#[test]
fn pixels_that_do_not_count_change_nothing() {
    let sizes = Sizes { batch: 1, classes: 3, height: 2, width: 2 };
    let even = Weighting { ignore_label: 7, class_weights: None };
    let mut logits = random(12, 1.0);
    let labels = [0, 7, 2, 1];
    let before = run::<f32>(sizes, &logits, &labels, even, 1.0);
    for class in 0..3 {
        logits[class * 4 + 1] = f64::NAN;
    }
    let after = run::<f32>(sizes, &logits, &labels, even, 1.0);
    assert_eq!(before, after);
    assert!((0..3).all(|class| after.1[class * 4 + 1] == 0.0));
    let none = run::<f32>(sizes, &logits, &[7; 4], even, 1.0);
    assert_eq!(none, (0.0, vec![0.0; 12]));
    let weightless = Weighting { class_weights: Some(&[0.0, 1.0, 1.0]), ..even };
    assert_eq!(run::<f32>(sizes, &random(12, 1.0), &[0, 7, 0, 0], weightless, 1.0), (0.0, vec![0.0; 12]));
}

#[test]
fn large_logits_stay_finite_and_a_nan_stays_visible() {
    let sizes = Sizes { batch: 1, classes: 3, height: 1, width: 2 };
    let even = Weighting { ignore_label: 255, class_weights: None };
    let (loss, gradient) = run::<f32>(sizes, &[1e4, -1e4, -1e4, 1e4, 0.0, 0.0], &[1, 1], even, 1.0);
    assert_eq!(loss, 1e4);
    assert_eq!(gradient, [0.5, 0.0, -0.5, 0.0, 0.0, 0.0]);
    let (loss, _) = run::<f32>(sizes, &[0.0, 0.0, f64::NAN, 0.0, 0.0, 0.0], &[0, 1], even, 1.0);
    assert!(loss.is_nan());
}

#[test]
fn a_label_out_of_range_is_named_with_its_pixel() {
    let sizes = Sizes { batch: 2, classes: 11, height: 3, width: 5 };
    let mut labels = vec![255u8; 30];
    labels[15 + 2 * 5 + 3] = 12;
    let logits = vec![0.0f32; sizes.planes().elements()];
    let error = forward(sizes, &logits, &labels, Weighting { ignore_label: 255, class_weights: None }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cross_entropy: labels is 12 at pixel (n 1, h 2, w 3), expected a class id below 11 (the number of classes) or \
         the ignored label 255"
    );
    let weights = [1.0, -2.0];
    let weighting = Weighting { ignore_label: 255, class_weights: Some(&weights) };
    let sizes = Sizes { batch: 1, classes: 2, height: 1, width: 1 };
    let error = forward(sizes, &[0.0f32; 2], &[0], weighting).unwrap_err();
    assert_eq!(error.to_string(), "cross_entropy: class_weights is -2 for class 1, expected finite numbers ≥ 0");
}

#[test]
fn results_are_the_same_bits_for_any_number_of_threads() {
    let sizes = Sizes { batch: 2, classes: 7, height: 61, width: 83 };
    let (logits, labels) = (random(sizes.planes().elements(), 3.0), labels(sizes, 0.1));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run::<f32>(sizes, &logits, &labels, Weighting { ignore_label: 255, class_weights: None }, 1.0))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}
