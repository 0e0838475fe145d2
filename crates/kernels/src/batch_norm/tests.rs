//! Batch norm against its formulas in f64, with hard data and every thread count.

use dsd_random::Stream;

use super::*;

fn random(count: usize, mean: f64, deviation: f64, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(3, "batch norm test", 0, index);
    (0..count).map(|_| mean + deviation * stream.normal()).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

/// |got − expected| ≤ tolerance · largest |expected|, element by element.
fn close<T: Float>(what: &str, got: &[T], expected: &[f64], tolerance: f64) {
    let largest = expected.iter().fold(1e-30f64, |most, value| most.max(value.abs()));
    close_for(what, got, expected, tolerance, largest);
}

/// |got − expected| ≤ tolerance · largest, element by element.
fn close_for<T: Float>(what: &str, got: &[T], expected: &[f64], tolerance: f64, largest: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected).abs();
        assert!(error <= tolerance * largest, "{what}[{index}]: {got} instead of {expected}");
    }
}

/// One problem, its inputs in f64.
struct Case {
    sizes: Planes,
    x: Vec<f64>,
    g: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    activation: Activation,
    /// The slopes of a PReLU in place of the activation.
    slopes: Option<Vec<f64>>,
}

const EPS: f64 = 1e-5;
const ACTIVATIONS: [Activation; 5] =
    [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish, Activation::Sigmoid];

/// Everything that both passes compute.
#[derive(Debug, PartialEq)]
struct Results<T> {
    y: Vec<T>,
    dx: Vec<T>,
    dweight: Vec<T>,
    dbias: Vec<T>,
    dslopes: Vec<T>,
    statistics: Statistics,
    /// The largest |weight · rstd · g|: dx is a difference of such terms, and of two values per channel almost 0.
    term: f64,
}

impl Case {
    fn new(sizes: Planes, mean: f64, activation: Activation) -> Self {
        let (x, g) = (random(sizes.elements(), mean, 1.5, 0), random(sizes.elements(), 0.1, 1.0, 1));
        let (weight, bias) = (random(sizes.channels, 1.0, 0.5, 2), random(sizes.channels, 0.5, 1.0, 3));
        Self { sizes, x, g, weight, bias, activation, slopes: None }
    }

    /// What the kernels give; with statistics: evaluation.
    fn run<T: Element>(&self, given: Option<&Statistics>) -> Results<T> {
        let convert = |values: &[f64]| values.iter().map(|value| T::from_f64(*value)).collect::<Vec<T>>();
        let (x, g, weight, bias) = (convert(&self.x), convert(&self.g), convert(&self.weight), convert(&self.bias));
        let slopes = self.slopes.as_deref().map(convert);
        let affine =
            Affine { weight: &weight, bias: &bias, eps: EPS, activation: self.activation, slopes: slopes.as_deref() };
        let mut y = vec![T::ZERO; x.len()];
        let (source, statistics) = match given {
            None => (Source::Batch, forward_train(self.sizes, &x, affine, &mut y).unwrap()),
            Some(given) => {
                forward_eval(self.sizes, &x, affine, given, &mut y).unwrap();
                (Source::Running, given.clone())
            }
        };
        let new = match given {
            None => forward_train_vec(self.sizes, &x, affine).unwrap().0,
            Some(given) => forward_eval_vec(self.sizes, &x, affine, given).unwrap(),
        };
        assert!(same_bits(&new, &y));
        let (mut dx, mut dweight, mut dbias) =
            (vec![T::ZERO; x.len()], vec![T::ZERO; bias.len()], vec![T::ZERO; bias.len()]);
        let mut dslopes = vec![T::ZERO; affine.slopes.map_or(0, <[T]>::len)];
        let gradients = Gradients { x: Some(&mut dx), weight: &mut dweight, bias: &mut dbias, slopes: &mut dslopes };
        backward(self.sizes, &x, &g, affine, &statistics, source, gradients).unwrap();
        let new = backward_vec(self.sizes, [&x, &g], affine, &statistics, source, true).unwrap();
        assert!(same_bits(new.x.as_deref().unwrap(), &dx));
        let new = [new.weight, new.bias, new.slopes].concat();
        assert!(same_bits(&new, &[dweight.as_slice(), &dbias, &dslopes].concat()));
        Results { y, dx, dweight, dbias, dslopes, statistics, term: 0.0 }
    }

    /// The formulas of the module's page, term by term, in f64.
    fn plain(&self, given: Option<&Statistics>) -> Results<f64> {
        let Planes { batch, channels, pixels } = self.sizes;
        let count = (batch * pixels) as f64;
        let mut out = Results {
            y: vec![0.0; self.x.len()],
            dx: vec![0.0; self.x.len()],
            dweight: vec![0.0; channels],
            dbias: vec![0.0; channels],
            dslopes: vec![0.0; self.slopes.as_ref().map_or(0, Vec::len)],
            statistics: Statistics { mean: vec![0.0; channels], var: vec![0.0; channels] },
            term: 0.0,
        };
        for c in 0..channels {
            let places: Vec<usize> =
                (0..batch).flat_map(|n| (0..pixels).map(move |p| (n * channels + c) * pixels + p)).collect();
            let (mean, var) = match given {
                Some(given) => (given.mean[c], given.var[c]),
                None => {
                    let mean = places.iter().map(|i| self.x[*i]).sum::<f64>() / count;
                    (mean, places.iter().map(|i| (self.x[*i] - mean).powi(2)).sum::<f64>() / count)
                }
            };
            let rstd = 1.0 / (var + EPS).sqrt();
            let masked: Vec<f64> = places
                .iter()
                .map(|i| {
                    let z = (self.x[*i] - mean) * rstd * self.weight[c] + self.bias[c];
                    if let Some(slopes) = &self.slopes {
                        let slope = if slopes.len() == 1 { 0 } else { c };
                        let factor = if z > 0.0 { 1.0 } else { slopes[slope] };
                        out.dslopes[slope] += if z > 0.0 { 0.0 } else { self.g[*i] * z };
                        out.y[*i] = factor * z;
                        return factor * self.g[*i];
                    }
                    out.y[*i] = self.activation.apply(z);
                    self.activation.gradient(z, out.y[*i], self.g[*i])
                })
                .collect();
            out.dbias[c] = masked.iter().sum();
            out.dweight[c] = places.iter().zip(&masked).map(|(i, g)| g * (self.x[*i] - mean) * rstd).sum();
            for (i, g) in places.iter().zip(&masked) {
                out.term = out.term.max((self.weight[c] * rstd * g).abs());
                let through = (out.dbias[c] + (self.x[*i] - mean) * rstd * out.dweight[c]) / count;
                out.dx[*i] = self.weight[c] * rstd * if given.is_some() { *g } else { g - through };
            }
            (out.statistics.mean[c], out.statistics.var[c]) = (mean, var);
        }
        out
    }
}

/// A NaN equals itself here.
fn same_bits<T: Float>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits())
}

fn compare<T: Float>(what: &str, got: &Results<T>, expected: &Results<f64>, tolerance: f64) {
    close(&format!("{what} mean"), &got.statistics.mean, &expected.statistics.mean, tolerance);
    close(&format!("{what} var"), &got.statistics.var, &expected.statistics.var, tolerance);
    close(&format!("{what} y"), &got.y, &expected.y, tolerance);
    close_for(&format!("{what} dx"), &got.dx, &expected.dx, tolerance, expected.term);
    close(&format!("{what} dweight"), &got.dweight, &expected.dweight, tolerance);
    close(&format!("{what} dbias"), &got.dbias, &expected.dbias, tolerance);
    close(&format!("{what} dslopes"), &got.dslopes, &expected.dslopes, tolerance);
}

#[test]
fn both_types_agree_with_the_formulas_for_every_length() {
    let given = |channels| Statistics { mean: random(channels, 0.3, 0.2, 5), var: vec![1.7; channels] };
    let mut cases = 0;
    for (batch, channels, pixels) in
        [(1, 1, 2), (2, 1, 1), (1, 3, 7), (3, 5, 31), (2, 4, 32), (2, 3, 33), (1, 2, 4095), (2, 2, 4097), (3, 2, 9001)]
    {
        let slopes = [Some(random(channels, 0.1, 0.3, 4)), Some(vec![-0.25])];
        let prelu = slopes.map(|slopes| (Activation::Identity, slopes));
        for (activation, slopes) in ACTIVATIONS.map(|activation| (activation, None)).into_iter().chain(prelu) {
            let sizes = Planes { batch, channels, pixels };
            let case = Case { slopes, ..Case::new(sizes, 0.7, activation) };
            let what = format!("{sizes:?} {activation:?} {:?}", case.slopes);
            compare(&what, &case.run::<f64>(None), &case.plain(None), 1e-12);
            let given = given(channels);
            compare(&what, &case.run::<f64>(Some(&given)), &case.plain(Some(&given)), 1e-12);
            // The f32 kernels on numbers that f32 holds exactly, so that only their own rounding is measured; a
            // pre-activation within a rounding error of a corner may fall on the other side there.
            let exact = |values: &[f64]| narrow(values).iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            let exact = Case {
                x: exact(&case.x),
                g: exact(&case.g),
                weight: exact(&case.weight),
                bias: exact(&case.bias),
                slopes: case.slopes.as_deref().map(exact),
                ..case
            };
            compare(&what, &exact.run::<f32>(None), &exact.plain(None), 3e-6);
            compare(&what, &exact.run::<f32>(Some(&given)), &exact.plain(Some(&given)), 3e-6);
            cases += 1;
        }
    }
    assert_eq!(cases, 63);
}

#[test]
fn a_mean_far_above_the_deviation_costs_no_digits() {
    let sizes = Planes { batch: 2, channels: 2, pixels: 10_000 };
    let mut x = narrow(&random(sizes.elements(), 1000.0, 0.5, 7));
    // The first value is an outlier: nothing may depend on it being typical.
    x[0] = -50_000.0;
    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let case = Case { x: wide, ..Case::new(sizes, 0.0, Activation::Identity) };
    let (got, expected) = (case.run::<f32>(None), case.plain(None));
    for c in 0..2 {
        let relative = |got: f64, expected: f64| ((got - expected) / expected).abs();
        assert!(relative(got.statistics.mean[c], expected.statistics.mean[c]) < 1e-7, "mean {c}");
        assert!(relative(got.statistics.var[c], expected.statistics.var[c]) < [1e-5, 1e-6][c], "var {c}");
    }
    close("y", &got.y[10_000..20_000], &expected.y[10_000..20_000], 1e-5);
}

#[test]
fn a_channel_of_two_values_is_normalised_by_hand() {
    // Values 1 and 3: mean 2, variance 1; with eps → 0: −1 and 1; times 2 plus 1: −1 and 3; ReLU: 0 and 3.
    let sizes = Planes { batch: 2, channels: 1, pixels: 1 };
    let affine = Affine { weight: &[2.0], bias: &[1.0], eps: 1e-300, activation: Activation::Relu, slopes: None };
    let mut y = [0.0; 2];
    let statistics = forward_train(sizes, &[1.0, 3.0], affine, &mut y).unwrap();
    assert_eq!(y, [0.0, 3.0]);
    assert_eq!(statistics, Statistics { mean: vec![2.0], var: vec![1.0] });
}

#[test]
fn one_value_per_channel_gives_the_bias_and_no_gradient() {
    let sizes = Planes { batch: 1, channels: 2, pixels: 1 };
    let case = Case { bias: vec![0.5, -1.0], ..Case::new(sizes, 3.3, Activation::Relu) };
    let got = case.run::<f32>(None);
    assert_eq!(got.y, [0.5, 0.0]);
    assert_eq!(got.dx, [0.0, 0.0]);
    assert_eq!(got.dweight, [0.0, 0.0]);
    assert_eq!(got.dbias, [case.g[0] as f32, 0.0]);
    assert_eq!(got.statistics.var, [0.0, 0.0]);
    let mut running = [1.0f32, 2.0];
    update_running(&mut running, &[None, Some(4.0)], 0.25).unwrap();
    assert_eq!(running, [1.0, 2.5]);
}

#[test]
fn results_are_the_same_bits_for_any_number_of_threads() {
    let case = Case::new(Planes { batch: 2, channels: 7, pixels: 5000 }, 0.2, Activation::Relu);
    let with = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| case.run::<f32>(None))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn a_nan_stays_visible() {
    for activation in ACTIVATIONS {
        let mut case = Case::new(Planes { batch: 1, channels: 2, pixels: 40 }, 0.0, activation);
        case.x[3] = f64::NAN;
        let got = case.run::<f32>(None);
        assert!(got.y[..40].iter().all(|y| y.is_nan()) && got.y[40..].iter().all(|y| !y.is_nan()));
        assert!(got.statistics.var[0].is_nan());
    }
}

#[test]
fn wrong_lengths_are_refused_by_name() {
    let sizes = Planes { batch: 1, channels: 2, pixels: 2 };
    let affine = Affine { weight: &[1.0; 2], bias: &[1.0f32; 2], eps: EPS, activation: Activation::Relu, slopes: None };
    let forward = |x: &[f32], affine, y: &mut [f32]| forward_train(sizes, x, affine, y).unwrap_err().to_string();
    assert_eq!(forward(&[0.0; 3], affine, &mut [0.0; 4]), "batch_norm: x has 3 elements, expected 4");
    assert_eq!(forward(&[0.0; 4], affine, &mut [0.0; 5]), "batch_norm: output has 5 elements, expected 4");
    let short = Affine { bias: &[1.0], ..affine };
    assert_eq!(forward(&[0.0; 4], short, &mut [0.0; 4]), "batch_norm: bias has 1 elements, expected 2");
}

#[test]
fn both_orders_visit_every_plane_once_in_each_sweep() {
    for pixels in [5, LARGE] {
        let sizes = Planes { batch: 2, channels: 3, pixels };
        let seen = std::sync::Mutex::new(Vec::new());
        let merged = in_two_sweeps(
            sizes,
            |channel, elements| {
                assert_eq!((elements.len(), elements.start % pixels), (pixels, 0));
                assert_eq!(elements.start / pixels % 3, channel);
                elements.start / pixels
            },
            |channel, planes| (channel, planes.collect::<Vec<_>>()),
            |channel, elements, (merged, planes)| {
                assert_eq!((channel, planes.len()), (*merged, 2));
                seen.lock().unwrap().push(elements.start / pixels);
            },
        );
        assert_eq!(merged, [(0, vec![0, 3]), (1, vec![1, 4]), (2, vec![2, 5])], "images in order");
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    }
}
