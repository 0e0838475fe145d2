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
fn relu_and_relu6_have_zero_slope_at_their_corners() {
    let x = [-1.0f32, -0.0, 0.0, 0.5, 6.0, 7.0];
    for (activation, values, slopes) in [
        (Activation::Identity, x, [1.0; 6]),
        (Activation::Relu, [0.0, 0.0, 0.0, 0.5, 6.0, 7.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        (Activation::Relu6, [0.0, 0.0, 0.0, 0.5, 6.0, 6.0], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    ] {
        let (mut y, mut dx) = ([9.0; 6], [9.0; 6]);
        forward(activation, &x, &mut y).unwrap();
        backward(activation, &y, &[1.0; 6], &mut dx).unwrap();
        assert_eq!((y, dx), (values, slopes), "{activation:?}");
        forward(activation, &[f32::NAN], &mut y[..1]).unwrap();
        assert!(y[0].is_nan(), "{activation:?}");
    }
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
