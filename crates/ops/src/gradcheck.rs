//! A check of gradients by central differences, for the operations of this crate and for your own.
//!
//! The output `y` of a function is projected on a fixed random cotangent `g`, L = Σ g·y, and backward's ∂L/∂x is compared
//! with (L(x + h) − L(x − h)) / 2h in f64, h = 10⁻⁵·max(1, |x|): every element of an input of at most 64 elements,
//! otherwise 16 elements and 5 random directions. The differences y(x + h) − y(x − h) are taken before the sum, so that
//! large outputs do not drown small slopes.
//!
//! Central differences know nothing of kinks: keep inputs of ReLU-like functions away from 0 and those of max-like
//! functions apart by more than h. To check an input that is used twice or is strided, use it so inside the closure.

use candle_core::{DType, Device, Tensor, Var};
use dsd_random::{Stream, name_hash};

use crate::Tape;

/// Relative part of the tolerance: |backward − difference| ≤ [`ABSOLUTE`] + `RELATIVE`·|difference|.
pub const RELATIVE: f64 = 1e-6;
/// Absolute part of the tolerance.
pub const ABSOLUTE: f64 = 1e-8;

/// Inputs of up to this many elements are checked in every element.
const EVERY_ELEMENT_UP_TO: usize = 64;
/// Elements and directions that are drawn from a larger input.
const DRAWN_ELEMENTS: usize = 16;
const DRAWN_DIRECTIONS: u64 = 5;
const STEP: f64 = 1e-5;
/// Gradients on a [`Tape`] are those of candle's graph but for the order of additions.
const TAPE: f64 = 1e-12;

/// Compares the backward pass of `f` with central differences, for every input.
///
/// `f` gets tensors of the shapes and values of `inputs` and must be a function of nothing else: it is called with
/// variables twice, in candle's graph and on a [`Tape`], which must agree, then with plain tensors for each difference. The random cotangent, elements and directions depend on
/// `name` alone.
///
/// # Shapes
/// `inputs`: any shapes, f64. The output of `f`: any shape, f64.
///
/// # Errors
/// A sentence that starts with `name`: the input, the element or direction, and both values where they differ; or that
/// an input or output is not f64, that two calls gave different outputs, that a value is not finite, or what `f` refused.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_ops::gradcheck::check_gradients;
/// let x = Tensor::new(&[[0.3f64, -1.2], [0.7, 2.0]], &Device::Cpu)?;
/// // Used twice: the gradients of both uses must be added.
/// check_gradients("x exp(x)", &[x], |x| x[0].exp()? * &x[0])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_gradients(
    name: &str,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Result<(), String> {
    let mut values = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        if input.dtype() != DType::F64 {
            return Err(format!("{name}: input {index} is {}, expected f64", input.dtype().as_str()));
        }
        values.push(flat(input).map_err(|error| format!("{name}: input {index}: {error}"))?);
    }
    let shapes: Vec<&[usize]> = inputs.iter().map(Tensor::dims).collect();

    let evaluate = |values: &[Vec<f64>]| -> Result<Vec<f64>, String> {
        let tensors = shapes
            .iter()
            .zip(values)
            .map(|(&shape, values)| Tensor::from_slice(values, shape, &Device::Cpu))
            .collect::<candle_core::Result<Vec<_>>>()
            .and_then(|tensors| f(&tensors))
            .and_then(|output| flat(&output));
        tensors.map_err(|error| format!("{name}: {error}"))
    };

    let base = evaluate(&values)?;
    if let Some(bad) = base.iter().position(|value| !value.is_finite()) {
        return Err(format!("{name}: output element {bad} is {}", base[bad]));
    }
    let mut draw = Stream::new(0, "gradcheck cotangent", name_hash(name), 0);
    let cotangent: Vec<f64> = base.iter().map(|_| draw.normal()).collect();
    let backward =
        |taped| backward(taped, &shapes, &values, &cotangent, &f).map_err(|error| format!("{name}: {error}"));
    let (output, gradients) = backward(false)?;
    let (on_tape, gradients_on_tape) = backward(true)?;
    if output != base || on_tape != base {
        return Err(format!("{name}: two calls with equal inputs gave different outputs"));
    }
    for (input, (candle, tape)) in gradients.iter().zip(&gradients_on_tape).enumerate() {
        let equal = |a: f64, b: f64| (a - b).abs() <= TAPE * (1.0 + a.abs()); // false for a NaN
        if let Some((candle, tape)) = candle.iter().zip(tape).find(|(candle, tape)| !equal(**candle, **tape)) {
            return Err(format!("{name}: input {input}: through candle's graph {candle:e}, on the tape {tape:e}"));
        }
    }

    for (input, gradient) in gradients.iter().enumerate() {
        if gradient.len() != values[input].len() {
            return Err(format!(
                "{name}: input {input} has {} elements, its gradient {}",
                values[input].len(),
                gradient.len()
            ));
        }
        for (what, direction) in directions(name, input, shapes[input], &values[input]) {
            let moved = |sign: f64| {
                let mut values = values.to_vec();
                for &(element, amount) in &direction {
                    values[input][element] += sign * amount * STEP;
                }
                evaluate(&values)
            };
            let (above, below) = (moved(1.0)?, moved(-1.0)?);
            let rise: f64 = cotangent.iter().zip(above.iter().zip(&below)).map(|(g, (a, b))| g * (a - b)).sum();
            let difference = rise / (2.0 * STEP);
            let slope: f64 = direction.iter().map(|&(element, amount)| gradient[element] * amount).sum();
            // Written so that NaN fails.
            let equal = (slope - difference).abs() <= ABSOLUTE + RELATIVE * difference.abs();
            if !equal {
                let scale = if direction.len() == 1 { direction[0].1 } else { 1.0 };
                return Err(format!(
                    "{name}: input {input}, {what}: backward gives {:.12e}, central differences {:.12e}",
                    slope / scale,
                    difference / scale
                ));
            }
        }
    }
    Ok(())
}

/// The output of `f` and the gradient of Σ cotangent·output with respect to each input, row-major. An input that `f`
/// does not use has gradient 0.
fn backward(
    taped: bool,
    shapes: &[&[usize]],
    values: &[Vec<f64>],
    cotangent: &[f64],
    f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> candle_core::Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let variables = shapes
        .iter()
        .zip(values)
        .map(|(&shape, values)| Var::from_slice(values, shape, &Device::Cpu))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let tape = taped.then(Tape::start);
    let output = f(&tensors)?;
    let elements = flat(&output)?;
    if elements.len() != cotangent.len() {
        candle_core::bail!("two calls gave {} and {} output elements", cotangent.len(), elements.len());
    }
    let cotangent = Tensor::from_slice(cotangent, output.dims(), &Device::Cpu)?;
    let gradients = crate::backward(&(output * cotangent)?.sum_all()?)?;
    drop(tape);
    let gradients = variables
        .iter()
        .zip(values)
        .map(|(variable, values)| match gradients.get(variable) {
            Some(gradient) => flat(gradient),
            None => Ok(vec![0.0; values.len()]),
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok((elements, gradients))
}

/// What is moved: a name, and the elements with their amounts in steps.
type Direction = (String, Vec<(usize, f64)>);

fn directions(name: &str, input: usize, shape: &[usize], values: &[f64]) -> Vec<Direction> {
    let mut elements: Vec<usize> = (0..values.len()).collect();
    let all = values.len() <= EVERY_ELEMENT_UP_TO;
    if !all {
        Stream::new(0, "gradcheck elements", name_hash(name), input as u64).shuffle(&mut elements);
        elements.truncate(DRAWN_ELEMENTS);
    }
    let mut directions: Vec<Direction> = elements
        .into_iter()
        .map(|element| {
            (format!("element {:?}", position(element, shape)), vec![(element, values[element].abs().max(1.0))])
        })
        .collect();
    if !all {
        for index in 0..DRAWN_DIRECTIONS {
            let purpose = format!("gradcheck direction of input {input}");
            let mut draw = Stream::new(0, &purpose, name_hash(name), index);
            let amounts =
                values.iter().map(|value| value.abs().max(1.0) * draw.between(-1.0, 1.0)).enumerate().collect();
            directions.push((format!("random direction {index}"), amounts));
        }
    }
    directions
}

/// The index of a row-major element in each dimension.
fn position(element: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = element;
    let mut position: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let index = rest % size;
            rest /= size;
            index
        })
        .collect();
    position.reverse();
    position
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f64>> {
    tensor.flatten_all()?.to_vec1::<f64>()
}

#[cfg(test)]
mod tests {
    use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, WithDType};

    use super::*;

    /// y = x³ with a backward pass that can be made wrong in one element.
    struct Cube {
        wrong_element: Option<usize>,
        wrong_by: f64,
    }

    impl CustomOp1 for Cube {
        fn name(&self) -> &'static str {
            "cube"
        }

        fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            let x = crate::storage::slice::<f64>(storage, layout)?;
            Ok((f64::to_cpu_storage_owned(x.iter().map(|x| x * x * x).collect()), layout.shape().clone()))
        }

        fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            let mut gradient: Vec<f64> = flat(x)?.iter().zip(flat(grad)?).map(|(x, g)| 3.0 * x * x * g).collect();
            if let Some(element) = self.wrong_element {
                gradient[element] *= 1.0 + self.wrong_by;
            }
            Ok(Some(Tensor::from_vec(gradient, x.dims(), &Device::Cpu)?))
        }
    }

    fn input(shape: &[usize]) -> Tensor {
        let mut draw = Stream::new(3, "gradcheck tests", 0, 0);
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.between(0.5, 1.5)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn cube(shape: &[usize], wrong_element: Option<usize>, wrong_by: f64) -> std::result::Result<(), String> {
        check_gradients("cube", &[input(shape)], |x| x[0].apply_op1(Cube { wrong_element, wrong_by }))
    }

    #[test]
    fn a_right_gradient_passes_small_and_large() {
        cube(&[2, 3], None, 0.0).unwrap();
        cube(&[3, 50], None, 0.0).unwrap();
    }

    #[test]
    fn one_wrong_element_is_named() {
        for (wrong_by, shape, element, named) in [
            (1e-5, [2, 3], 4, "element [1, 1]"),
            (-0.5, [1, 6], 5, "element [0, 5]"),
            (-1.0, [8, 8], 63, "element [7, 7]"),
        ] {
            let message = cube(&shape, Some(element), wrong_by).unwrap_err();
            assert!(message.starts_with("cube: input 0, ") && message.contains(named), "{message}");
        }
    }

    #[test]
    fn one_wrong_element_of_a_large_input_shows_in_a_random_direction() {
        for element in 0..20 {
            let message = cube(&[10, 20], Some(element), 1.0).unwrap_err();
            assert!(message.contains("direction") || message.contains("element"), "{message}");
        }
    }

    #[test]
    fn a_gradient_that_is_cut_off_is_found() {
        let message = check_gradients("cut", &[input(&[3])], |x| x[0].detach().sqr()).unwrap_err();
        assert!(message.contains("element [0]") && message.contains("backward gives 0.0"), "{message}");
    }

    #[test]
    fn a_nan_gradient_does_not_pass() {
        assert!(cube(&[2, 3], Some(2), f64::NAN).is_err());
    }

    #[test]
    fn unusable_functions_are_refused() {
        let single = input(&[2]).to_dtype(DType::F32).unwrap();
        let message = check_gradients("single", &[single], |x| x[0].sqr()).unwrap_err();
        assert_eq!(message, "single: input 0 is f32, expected f64");

        let calls = std::cell::Cell::new(0.0);
        let message = check_gradients("unsteady", &[input(&[2])], |x| {
            calls.set(calls.get() + 1.0);
            &x[0] * calls.get()
        })
        .unwrap_err();
        assert_eq!(message, "unsteady: two calls with equal inputs gave different outputs");

        let message = check_gradients("pole", &[input(&[2])], |x| (&x[0] - &x[0])?.recip()).unwrap_err();
        assert_eq!(message, "pole: output element 0 is inf");
    }

    #[test]
    fn an_unused_input_has_gradient_zero() {
        check_gradients("first only", &[input(&[2]), input(&[3])], |x| x[0].sqr()).unwrap();
    }
}
