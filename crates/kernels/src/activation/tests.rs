//! Activations and softmax against their formulas in f64.

use dsd_random::Stream;

use super::*;

fn random(count: usize, deviation: f64) -> Vec<f64> {
    let mut stream = Stream::new(5, "activation test", count as u64, 0);
    (0..count).map(|_| f64::from((deviation * stream.normal()) as f32)).collect()
}

fn convert<T: Float>(values: &[f64]) -> Vec<T> {
    values.iter().map(|value| T::from_f64(*value)).collect()
}

fn close<T: Float>(what: &str, got: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "{what}[{index}]: {got} instead of {expected}");
    }
}

#[test]
fn corners_have_the_slopes_of_pytorch() {
    let x = [-4.0f32, -3.0, -0.0, 0.0, 1.5, 3.0, 6.0, 7.0];
    let swish = [0.0, 0.0, 0.0, 0.0, 1.125, 3.0, 6.0, 7.0];
    for (activation, values, slopes) in [
        (Activation::Identity, x, [1.0; 8]),
        (Activation::Relu, [0.0, 0.0, 0.0, 0.0, 1.5, 3.0, 6.0, 7.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        (Activation::Relu6, [0.0, 0.0, 0.0, 0.0, 1.5, 3.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
        (Activation::HardSwish, swish, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]),
        (
            Activation::HardSigmoid,
            [0.0, 0.0, 0.5, 0.5, 0.75, 1.0, 1.0, 1.0],
            [0.0, 0.0, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0, 0.0, 0.0, 0.0],
        ),
    ] {
        let (mut y, mut dx) = ([9.0; 8], [9.0; 8]);
        forward(activation, &x, &mut y).unwrap();
        backward(activation, &x, &y, &[1.0; 8], &mut dx).unwrap();
        assert_eq!((y, dx), (values, slopes), "{activation:?}");
    }
}

#[test]
fn sigmoid_agrees_with_its_formula_and_has_the_right_ends() {
    let x: Vec<f64> = (-400..=400).map(|step| f64::from(step) * 0.25).collect();
    let expected: Vec<f64> = x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
    let slopes: Vec<f64> = expected.iter().map(|y| y * (1.0 - y)).collect();
    let single = map::<f32>(Activation::Sigmoid, &x);
    close("f32", &single.0, &expected, 2e-7);
    close("f32 slope", &single.1, &slopes, 2e-7);
    let double = map::<f64>(Activation::Sigmoid, &x);
    close("f64", &double.0, &expected, 1e-15);
    close("f64 slope", &double.1, &slopes, 1e-15);
    let ends = map::<f32>(Activation::Sigmoid, &[f64::NEG_INFINITY, -1e4, 0.0, 1e4, f64::INFINITY]);
    assert_eq!(ends, (vec![0.0, 0.0, 0.5, 1.0, 1.0], vec![0.0, 0.0, 0.25, 0.0, 0.0]));
}

#[test]
fn a_nan_stays_visible() {
    for activation in ACTIVATIONS {
        assert!(map::<f32>(activation, &[f64::NAN]).0[0].is_nan(), "{activation:?}");
    }
    let mut y = [0.0];
    add_relu(&[f64::NAN], &[1.0], &mut y).unwrap();
    assert!(y[0].is_nan());
}

#[test]
fn f32_agrees_with_f64_for_every_length() {
    for activation in ACTIVATIONS {
        for count in [1, 7, 8, 33, 40_000] {
            let x = random(count, 4.0);
            let (single, double) = (map::<f32>(activation, &x), map::<f64>(activation, &x));
            close(&format!("{activation:?} {count}"), &single.0, &double.0, 3e-7);
            close(&format!("{activation:?} {count} slope"), &single.1, &double.1, 3e-7);
        }
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu6,
    Activation::HardSwish,
    Activation::HardSigmoid,
    Activation::Sigmoid,
];

/// Values and slopes.
fn map<T: Element>(activation: Activation, x: &[f64]) -> (Vec<T>, Vec<T>) {
    let x: Vec<T> = convert(x);
    let (mut y, mut dx) = (vec![T::from_f64(9.0); x.len()], vec![T::from_f64(9.0); x.len()]);
    forward(activation, &x, &mut y).unwrap();
    backward(activation, &x, &y, &vec![T::ONE; x.len()], &mut dx).unwrap();
    (y, dx)
}

#[test]
fn a_sum_is_cut_off_at_zero() {
    let mut y = [9.0; 4];
    add_relu(&[1.0, -1.0, 2.0, -3.0f32], &[2.0, 1.0, -3.0, 5.0], &mut y).unwrap();
    assert_eq!(y, [3.0, 0.0, 0.0, 2.0]);
    let error = add_relu(&[1.0f32; 4], &[1.0; 3], &mut y).unwrap_err();
    assert_eq!(error.to_string(), "add_relu: b has 3 elements, expected 4");
}

#[test]
fn prelu_by_hand() {
    // Two images, two channels, three pixels; slopes ½ and 2. At 0 the slope is the weight's.
    let sizes = Planes { batch: 2, channels: 2, pixels: 3 };
    let x = [-2.0, 0.0, 4.0, -1.0, 3.0, -3.0, 1.0, -4.0, 2.0, 5.0, -2.0, 0.0f64];
    let g = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0];
    let (mut y, mut dx, mut dweight) = ([9.0; 12], [9.0; 12], [9.0; 2]);
    prelu_forward(sizes, &x, &[0.5, 2.0], &mut y).unwrap();
    assert_eq!(y, [-1.0, 0.0, 4.0, -2.0, 3.0, -6.0, 1.0, -2.0, 2.0, 5.0, -4.0, 0.0]);
    prelu_backward(sizes, &x, &[0.5, 2.0], &g, &mut dx, &mut dweight).unwrap();
    assert_eq!(dx, [0.5, 0.5, 1.0, 2.0, 1.0, 4.0, 1.0, 1.5, 1.0, 1.0, 2.0, 2.0]);
    // −2 − 12; −1 − 6 − 2.
    assert_eq!(dweight, [-14.0, -9.0]);
    let mut one = [9.0];
    prelu_backward(sizes, &x, &[0.5], &g, &mut dx, &mut one).unwrap();
    assert_eq!(one, [-23.0]);
    let error = prelu_forward(sizes, &x, &[0.5; 3], &mut y).unwrap_err();
    assert_eq!(error.to_string(), "prelu: weight has 3 elements, expected 2");
}

#[test]
fn prelu_sums_long_planes_exactly_enough() {
    let sizes = Planes { batch: 2, channels: 2, pixels: 10_001 };
    let (x, g) = (random(sizes.elements(), 1.0), random(sizes.elements(), 2.0));
    let (mut dx, mut dweight) = (vec![0.0f32; x.len()], [0.0f32; 2]);
    prelu_backward(sizes, &convert(&x), &[0.1, 0.2], &convert(&g), &mut dx, &mut dweight).unwrap();
    for channel in 0..2 {
        let own = (0..x.len()).filter(|i| i / sizes.pixels % 2 == channel && x[*i] <= 0.0);
        let expected: f64 = own.map(|i| x[i] * g[i]).sum();
        close("dweight", &dweight[channel..=channel], &[expected], 1e-6);
    }
}

/// The formulas of [`Softmax`] and its gradient, pixel by pixel.
fn plain(kind: Softmax, sizes: Planes, x: &[f64], g: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for n in 0..sizes.batch {
        for pixel in 0..sizes.pixels {
            let places: Vec<usize> =
                (0..sizes.channels).map(|c| (n * sizes.channels + c) * sizes.pixels + pixel).collect();
            let largest = places.iter().map(|i| x[*i]).fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + places.iter().map(|i| (x[*i] - largest).exp()).sum::<f64>().ln();
            let p = |i: usize| (x[i] - log_sum).exp();
            let product: f64 = places.iter().map(|i| g[*i] * p(*i)).sum();
            let sum: f64 = places.iter().map(|i| g[*i]).sum();
            for i in places {
                (y[i], dx[i]) = match kind {
                    Softmax::Probability => (p(i), p(i) * (g[i] - product)),
                    Softmax::Logarithm => (x[i] - log_sum, g[i] - p(i) * sum),
                };
            }
        }
    }
    (y, dx)
}

fn softmax<T: Element>(kind: Softmax, sizes: Planes, x: &[f64], g: &[f64]) -> (Vec<T>, Vec<T>) {
    let (x, g) = (convert(x), convert(g));
    let (mut y, mut dx) = (vec![T::ZERO; x.len()], vec![T::ZERO; x.len()]);
    softmax_forward(kind, sizes, &x, &mut y).unwrap();
    softmax_backward(kind, sizes, &y, &g, &mut dx).unwrap();
    (y, dx)
}

#[test]
fn softmax_agrees_with_its_formulas() {
    let mut cases = 0;
    for (batch, channels, pixels) in
        [(1, 1, 1), (3, 1, 5), (2, 7, 1), (5, 9000, 1), (2, 11, 63), (2, 19, 257), (1, 3, 5000), (2, 600, 9)]
    {
        let sizes = Planes { batch, channels, pixels };
        let (x, g) = (random(sizes.elements(), 3.0), random(sizes.elements(), 1.0));
        for kind in [Softmax::Probability, Softmax::Logarithm] {
            let what = format!("{kind:?} {sizes:?}");
            let (y, dx) = plain(kind, sizes, &x, &g);
            let double = softmax::<f64>(kind, sizes, &x, &g);
            close(&what, &double.0, &y, 1e-13);
            close(&what, &double.1, &dx, 1e-12);
            let single = softmax::<f32>(kind, sizes, &x, &g);
            close(&what, &single.0, &y, 1e-6);
            close(&what, &single.1, &dx, 2e-5);
            cases += 1;
        }
    }
    assert_eq!(cases, 16);
}

#[test]
fn softmax_is_finite_for_large_values_and_shows_a_nan() {
    for pixels in [1, 2] {
        let sizes = Planes { batch: 1, channels: 2, pixels };
        let x: Vec<f64> = [1e4, -1e4].iter().flat_map(|x| vec![*x; pixels]).collect();
        let g = vec![1.0; x.len()];
        let (y, dx) = softmax::<f32>(Softmax::Probability, sizes, &x, &g);
        assert_eq!((y[0], y[pixels], dx[0]), (1.0, 0.0, 0.0));
        let (y, _) = softmax::<f32>(Softmax::Logarithm, sizes, &x, &g);
        assert_eq!((y[0], y[pixels]), (0.0, -2e4));
        let mut x = x;
        x[0] = f64::NAN;
        let (y, _) = softmax::<f32>(Softmax::Probability, sizes, &x, &g);
        assert!(y[0].is_nan() && y[pixels].is_nan());
    }
}

#[test]
fn softmax_is_the_same_bits_for_any_number_of_threads() {
    let sizes = Planes { batch: 2, channels: 5, pixels: 7001 };
    let (x, g) = (random(sizes.elements(), 3.0), random(sizes.elements(), 1.0));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| softmax::<f32>(Softmax::Logarithm, sizes, &x, &g))
    };
    assert_eq!(with(1), with(3));
}
