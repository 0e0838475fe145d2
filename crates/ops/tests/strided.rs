//! A strided tensor, a strided gradient and another number of threads change not one bit, in f32 and f64.

use candle_core::{DType, Result, Tensor};

use crate::cases::{Case, cases, forward_and_backward};
use crate::inputs::{Tolerance, compare, report};

/// The last two dimensions exchanged; vectors and scalars as they are.
fn transpose(x: &Tensor) -> Result<Tensor> {
    if x.rank() < 2 { Ok(x.clone()) } else { x.transpose(x.rank() - 2, x.rank() - 1) }
}

fn cast(case: &Case, dtype: DType) -> Vec<Tensor> {
    case.inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect()
}

/// Compares two runs of every case in both types; `other` gets the inputs and the function.
fn same_bits(what: &str, other: impl Fn(&[Tensor], &Case) -> Result<Vec<Tensor>>) {
    let cases = cases();
    let mut failures = Vec::new();
    for case in &cases {
        for dtype in [DType::F32, DType::F64] {
            let inputs = cast(case, dtype);
            let run = || Ok((forward_and_backward(&inputs, &case.function)?, other(&inputs, case)?));
            match run() as Result<(Vec<Tensor>, Vec<Tensor>)> {
                Ok((expected, got)) => {
                    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let part =
                            if index == 0 { "output".into() } else { format!("gradient of input {}", index - 1) };
                        let name = format!("{} {}: {part}", case.name, dtype.as_str());
                        failures.extend(compare(&name, got, expected, Tolerance::default()).err());
                    }
                }
                Err(error) => failures.push(format!("{} {}: {error}", case.name, dtype.as_str())),
            }
        }
    }
    report(what, 2 * cases.len(), &failures);
}

#[test]
fn transposed_inputs_change_nothing() {
    same_bits("cases with transposed inputs", |inputs, case| {
        // Variables of the transposed layout, seen through a transposition: the operation gets strided tensors.
        let stored = inputs.iter().map(|x| transpose(x)?.contiguous()).collect::<Result<Vec<_>>>()?;
        let mut results = forward_and_backward(&stored, |stored| {
            (case.function)(&stored.iter().map(transpose).collect::<Result<Vec<_>>>()?)
        })?;
        for gradient in &mut results[1..] {
            *gradient = transpose(gradient)?;
        }
        Ok(results)
    });
}

#[test]
fn views_with_an_offset_change_nothing() {
    same_bits("cases with narrowed inputs", |inputs, case| {
        let stored = inputs.iter().map(|x| Tensor::cat(&[x, x, x], 0)).collect::<Result<Vec<_>>>()?;
        let inner = |x: &Tensor| x.narrow(0, x.dim(0)? / 3, x.dim(0)? / 3);
        let mut results = forward_and_backward(&stored, |stored| {
            (case.function)(&stored.iter().map(inner).collect::<Result<Vec<_>>>()?)
        })?;
        for gradient in &mut results[1..] {
            *gradient = inner(gradient)?;
        }
        Ok(results)
    });
}

#[test]
fn a_strided_gradient_changes_nothing() {
    same_bits("cases with a strided gradient", |inputs, case| {
        // The double transposition is the identity, but the gradient comes back through it strided. (candle 0.11.1 adds
        // every gradient to zeros, which makes it contiguous again; this test tells when that ends.)
        forward_and_backward(inputs, |x| transpose(&transpose(&(case.function)(x)?)?.contiguous()?))
    });
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        same_bits(&format!("cases on {threads} threads"), |inputs, case| {
            pool.install(|| forward_and_backward(inputs, &case.function))
        });
    }
}
