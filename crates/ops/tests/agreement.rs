//! The fast f32 kernels against the plain f64 ones, forward and backward.

use candle_core::{DType, Result, Tensor};

use crate::cases::{cases, forward_and_backward};
use crate::inputs::{Tolerance, compare, report};

/// The number of calls in cases.rs.
const CASES: usize = 105;

#[test]
fn f32_agrees_with_f64_forward_and_backward() {
    let cases = cases();
    assert_eq!(cases.len(), CASES, "cases were added or lost: change CASES");
    let mut failures = Vec::new();
    for case in &cases {
        let single: Vec<Tensor> = case.inputs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
        let run = || -> Result<(Vec<Tensor>, Vec<Tensor>)> {
            Ok((forward_and_backward(&single, &case.function)?, forward_and_backward(&case.inputs, &case.function)?))
        };
        let (single, double) = match run() {
            Ok(pair) => pair,
            Err(error) => {
                failures.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        assert_eq!(single[0].dtype(), DType::F32, "{}", case.name);
        for (index, (got, expected)) in single.iter().zip(&double).enumerate() {
            let what = if index == 0 { "output".to_string() } else { format!("gradient of input {}", index - 1) };
            let tolerance = Tolerance { absolute: 1e-30, relative: 0.0, of_largest: case.of_largest };
            failures.extend(compare(&format!("{}: {what}", case.name), got, expected, tolerance).err());
        }
    }
    report("comparisons of f32 with f64", cases.len(), &failures);
}
