//! The tape: the same gradients as candle's graph, and every way in which one can be lost is an error.

use candle_core::Device;

use super::*;
use crate::{add, concat, relu, sigmoid};

fn variable(values: &[f32]) -> Var {
    Var::from_tensor(&Tensor::from_slice(values, (1, 1, 1, values.len()), &Device::Cpu).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// How many nodes the tape of this thread has.
fn nodes() -> usize {
    CURRENT.with_borrow(|record| record.as_ref().map_or(0, |record| record.nodes.len()))
}

/// Two branches that meet twice, a variable used in both, and a part of candle's own in the middle.
fn network(x: &Var, w: &Var, candle_between: bool) -> Tensor {
    let a = add(x.as_tensor(), w.as_tensor()).unwrap();
    let b = relu(&a).unwrap();
    let b = if candle_between { (b * 2.0).unwrap() } else { add(&b, &b).unwrap() };
    let c = sigmoid(&add(&b, w.as_tensor()).unwrap()).unwrap();
    concat(&[&add(&a, &c).unwrap(), &b], 3).unwrap().sqr().unwrap().sum_all().unwrap()
}

#[test]
fn gradients_are_those_of_candles_graph() {
    let (x, w) = (variable(&[-1.0, 0.5, 2.0]), variable(&[0.25, -3.0, 1.0]));
    let expected = network(&x, &w, false).backward().unwrap();
    for candle_between in [false, true] {
        let tape = Tape::start();
        let loss = network(&x, &w, candle_between);
        assert_eq!(nodes(), if candle_between { 2 } else { 7 }, "what follows candle's own operation is candle's");
        // More than once, and a last time that takes the tape away.
        for found in [backward(&loss).unwrap(), backward(&loss).unwrap(), tape.finish(&loss).unwrap()] {
            for variable in [&x, &w] {
                let (expected, found) = (values(expected.get(variable).unwrap()), values(found.get(variable).unwrap()));
                assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5), "{expected:?} {found:?}");
            }
        }
    }
    assert_eq!(nodes(), 0);
}

#[test]
fn a_backward_pass_may_begin_with_the_gradient_of_any_output() {
    let (x, w) = (variable(&[-1.0, 0.5, 2.0]), variable(&[0.25, -3.0, 1.0]));
    let given = Tensor::new(&[[[[2f32, -1.0, 0.5]]]], &Device::Cpu).unwrap();
    let output = || relu(&add(x.as_tensor(), w.as_tensor()).unwrap()).unwrap();
    let expected = (output() * &given).unwrap().sum_all().unwrap().backward().unwrap();
    for candle_follows in [false, true] {
        let tape = Tape::start();
        let output = if candle_follows { (output() * 1.0).unwrap() } else { output() };
        let found = tape.finish_with(&output, &given).unwrap();
        for variable in [&x, &w] {
            assert_eq!(values(expected.get(variable).unwrap()), values(found.get(variable).unwrap()));
        }
    }
    let message = |gradient: &Tensor| Tape::start().finish_with(&output(), gradient).unwrap_err().to_string();
    let expected = "finish_with: gradient has shape [1], expected [1, 1, 1, 3]";
    assert_eq!(message(&Tensor::new(&[1f32], &Device::Cpu).unwrap()), expected);
    let expected = "finish_with: gradient is f64, expected f32";
    assert_eq!(message(&given.to_dtype(DType::F64).unwrap()), expected);
}

#[test]
fn no_gradient_is_lost_in_silence() {
    let x = variable(&[1.0, 2.0]);
    let tape = Tape::start();
    let loss = relu(x.as_tensor()).unwrap().sum_all().unwrap();
    let message = |error: String| assert!(error.contains("dsd_ops::backward"), "{error}");
    message(loss.backward().unwrap_err().to_string());
    assert!(backward(&loss).is_ok());
    {
        let _inner = Tape::start();
        message(backward(&loss).unwrap_err().to_string());
    }
    assert!(backward(&loss).is_ok(), "the outer tape listens again");
    drop(tape);
    message(backward(&loss).unwrap_err().to_string());
}

#[test]
fn what_needs_no_gradient_is_not_recorded() {
    let x = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let tape = Tape::start();
    assert!(!relu(&x).unwrap().track_op());
    assert_eq!(nodes(), 0);
    drop(tape);
    let x = variable(&[1.0]);
    assert_eq!(values(backward(&relu(&x).unwrap().sum_all().unwrap()).unwrap().get(&x).unwrap()), [1.0]);
}

#[test]
fn what_no_backward_pass_reads_is_not_kept() {
    let (x, w) = (variable(&[-1.0, 0.5, 2.0]), variable(&[0.25, -3.0, 1.0]));
    let tape = Tape::start();
    let sum = add(x.as_tensor(), w.as_tensor()).unwrap();
    let positive = relu(&sum).unwrap();
    let joined = concat(&[&sum, &positive], 3).unwrap();
    let is_kept = |kept: &Tensor, tensor: &Tensor| {
        assert_eq!((kept.dims(), kept.dtype(), kept.track_op()), (tensor.dims(), tensor.dtype(), tensor.track_op()));
        kept.id() == tensor.id()
    };
    CURRENT.with_borrow(|record| {
        let nodes = &record.as_ref().unwrap().nodes;
        // Of a sum and of parts that are joined nothing; of a ReLU what it gave.
        assert!(!is_kept(&nodes[0].inputs[0].tensor, x.as_tensor()) && !is_kept(&nodes[0].output, &sum));
        assert!(!is_kept(&nodes[1].inputs[0].tensor, &sum) && is_kept(&nodes[1].output, &positive));
        assert!(!is_kept(&nodes[2].inputs[1].tensor, &positive) && !is_kept(&nodes[2].output, &joined));
        assert!(values(&nodes[0].output).iter().all(|value| value.is_nan()), "whoever reads it all the same finds out");
    });
    drop((sum, positive));
    let gradients = tape.finish(&joined.sum_all().unwrap()).unwrap();
    assert_eq!(values(gradients.get(&x).unwrap()), [1.0, 1.0, 2.0]);
}
