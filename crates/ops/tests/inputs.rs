//! Seeded inputs, and the comparison of tensors.

use candle_core::{DType, Device, Tensor};
use dsd_random::Stream;

/// Normal values, f64. A function of the seed and the shape.
pub(crate) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut draw = Stream::new(
        seed,
        "test input",
        shape.len() as u64,
        shape.iter().fold(0, |hash, &size| hash * 131 + size as u64),
    );
    from(shape, |_| draw.normal())
}

/// Where the slope of an activation jumps.
pub(crate) const KINKS: [f64; 4] = [-3.0, 0.0, 3.0, 6.0];

/// Normal values without those within 0.05 of a kink: safe for central differences through every activation.
pub(crate) fn away_from_kinks(seed: u64, shape: &[usize]) -> Tensor {
    let mut draw = Stream::new(seed, "kinks", 0, 0);
    from(shape, |_| {
        loop {
            let value = 4.0 * draw.normal();
            if KINKS.iter().all(|kink| (value - kink).abs() > 0.05) {
                return value;
            }
        }
    })
}

/// Different values in random order, neighbours 0.125 apart (exact in f32), on both sides of 0: no ties for max.
pub(crate) fn distinct(seed: u64, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let mut order: Vec<usize> = (0..count).collect();
    Stream::new(seed, "distinct", 0, 0).shuffle(&mut order);
    from(shape, |index| 0.125 * (order[index] as f64 - 0.4 * count as f64).round())
}

/// Class ids u8 [N,H,W] below `num_classes`, a fraction of them replaced by `ignore_label`.
pub(crate) fn labels(seed: u64, shape: &[usize; 3], num_classes: usize, ignored: f64, ignore_label: u8) -> Tensor {
    let mut draw = Stream::new(seed, "labels", 0, 0);
    let ids: Vec<u8> = (0..shape.iter().product())
        .map(|_| if draw.chance(ignored) { ignore_label } else { draw.below(num_classes) as u8 })
        .collect();
    Tensor::from_vec(ids, &shape[..], &Device::Cpu).unwrap()
}

pub(crate) fn from(shape: &[usize], mut value: impl FnMut(usize) -> f64) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(&mut value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The elements, row-major, widened to f64.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// What a comparison allows: |got − expected| ≤ absolute + relative·|expected| + of_largest·max |expected|.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tolerance {
    pub(crate) absolute: f64,
    pub(crate) relative: f64,
    pub(crate) of_largest: f64,
}

/// The worst element that is outside the tolerance, in words.
pub(crate) fn compare(what: &str, got: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if got.dims() != expected.dims() {
        return Err(format!("{what}: shape {:?}, expected {:?}", got.dims(), expected.dims()));
    }
    let (got_values, expected_values) = (values(got), values(expected));
    let largest = expected_values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let excess = |(got, expected): (&f64, &f64)| {
        let excess = (got - expected).abs()
            - (tolerance.absolute + tolerance.relative * expected.abs() + tolerance.of_largest * largest);
        if excess.is_nan() { f64::INFINITY } else { excess }
    };
    let worst = got_values.iter().zip(&expected_values).map(excess).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    match worst {
        Some((index, excess)) if excess > 0.0 => Err(format!(
            "{what}: element {index} of {:?} is {:.9e}, expected {:.9e} (largest {largest:.3e}, {tolerance:?})",
            got.dims(),
            got_values[index],
            expected_values[index]
        )),
        _ => Ok(()),
    }
}

/// Stops with all failures at once.
pub(crate) fn report(what: &str, total: usize, failures: &[String]) {
    println!("{what}: {} of {total} hold", total - failures.len());
    assert!(failures.is_empty(), "{} of {total} {what} fail:\n{}", failures.len(), failures.join("\n"));
}
