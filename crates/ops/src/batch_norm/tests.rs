//! Batch norm as a graph node: gradients, running statistics and errors.

use candle_core::{DType, Device, Tensor, Var};
use dsd_random::Stream;

use super::*;
use crate::gradcheck::check_gradients;

fn random(shape: &[usize], index: u64) -> Tensor {
    let mut stream = Stream::new(11, "batch norm ops test", 0, index);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| 0.4 + 1.3 * stream.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

const EPS: f64 = 1e-5;
const ACTIVATIONS: [Activation; 3] = [Activation::Identity, Activation::Relu, Activation::Relu6];

#[test]
fn gradients_are_those_of_central_differences() {
    let mut rows = 0;
    for shape in [[2, 3, 5, 7], [1, 2, 3, 4], [2, 1, 3, 2], [3, 4, 1, 1]] {
        let c = shape[1];
        let inputs = [random(&shape, 0), random(&[c], 1), random(&[c], 2)];
        let (mean, var) = (random(&[c], 3), random(&[c], 4).sqr().unwrap());
        for activation in ACTIVATIONS {
            let name = format!("batch_norm_train {shape:?} {activation:?}");
            check_gradients(&name, &inputs, |i| Ok(batch_norm_train(&i[0], &i[1], &i[2], None, EPS, activation)?))
                .unwrap();
            let name = format!("batch_norm_eval {shape:?} {activation:?}");
            check_gradients(&name, &inputs, |i| {
                Ok(batch_norm_eval(&i[0], &i[1], &i[2], &mean, &var, EPS, activation)?)
            })
            .unwrap();
            rows += 2;
        }
    }
    assert_eq!(rows, 24);
}

#[test]
fn gradients_hold_for_a_strided_input_that_is_used_twice() {
    let inputs = [random(&[2, 5, 3, 4], 0), random(&[3], 1), random(&[3], 2)];
    check_gradients("batch_norm strided twice", &inputs, |i| {
        let x = i[0].transpose(1, 2)?;
        let y = batch_norm_train(&x, &i[1], &i[2], None, EPS, Activation::Relu)?;
        // The gradient of y arrives strided as well.
        (y.transpose(2, 3)? * x.transpose(2, 3)?)?.sqr()
    })
    .unwrap();
}

#[test]
fn an_untracked_input_costs_nothing_and_breaks_nothing() {
    let x = random(&[1, 2, 3, 3], 0);
    let (weight, bias) = (Var::from_tensor(&random(&[2], 1)).unwrap(), random(&[2], 2));
    let y = batch_norm_train(&x, &weight, &bias, None, EPS, Activation::Identity).unwrap();
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&weight).is_some() && gradients.get(&x).is_none() && gradients.get(&bias).is_none());
}

#[test]
fn running_statistics_follow_pytorch_and_are_seen_by_all_who_share_them() {
    // Values 1, 3, 5, 7: mean 4, unbiased variance 20/3.
    let x = Tensor::new(&[[[[1f32, 3.0], [5.0, 7.0]]]], &Device::Cpu).unwrap();
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
    let (mean, var) =
        (Var::zeros(1, DType::F32, &Device::Cpu).unwrap(), Var::ones(1, DType::F32, &Device::Cpu).unwrap());
    let (shared_mean, shared_var) = (mean.as_detached_tensor(), var.as_detached_tensor());
    let running = RunningStatistics { mean: &shared_mean, var: &shared_var, momentum: 0.1 };
    batch_norm_train(&x, &one, &one, Some(running), EPS, Activation::Relu).unwrap();
    let read = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap()[0];
    assert!((read(&mean) - 0.4).abs() < 1e-7, "{}", read(&mean));
    assert!((read(&var) - (0.9 + 2.0 / 3.0)).abs() < 1e-6, "{}", read(&var));
}

#[test]
fn running_statistics_may_be_part_of_a_larger_tensor() {
    let x = Tensor::new(&[[[[1f32, 3.0]]]], &Device::Cpu).unwrap();
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
    let both = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let part = |row: usize| both.narrow(0, row, 1).unwrap().narrow(1, 1, 1).unwrap().squeeze(0).unwrap();
    let (mean, var) = (part(0), part(1));
    let running = RunningStatistics { mean: &mean, var: &var, momentum: 1.0 };
    batch_norm_train(&x, &one, &one, Some(running), EPS, Activation::Identity).unwrap();
    assert_eq!(both.to_vec2::<f32>().unwrap(), [[0.0, 2.0], [0.0, 2.0]]);
}

#[test]
fn one_value_per_channel_gives_the_bias_and_no_nan() {
    let x = Var::from_tensor(&Tensor::new(&[[[[3f32]], [[-2.0]]]], &Device::Cpu).unwrap()).unwrap();
    let weight = Var::ones(2, DType::F32, &Device::Cpu).unwrap();
    let bias = Var::new(&[0.5f32, -0.5], &Device::Cpu).unwrap();
    let (mean, var) =
        (Var::zeros(2, DType::F32, &Device::Cpu).unwrap(), Var::ones(2, DType::F32, &Device::Cpu).unwrap());
    let (shared_mean, shared_var) = (mean.as_detached_tensor(), var.as_detached_tensor());
    let running = RunningStatistics { mean: &shared_mean, var: &shared_var, momentum: 0.5 };
    let y = batch_norm_train(&x, &weight, &bias, Some(running), EPS, Activation::Relu).unwrap();
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.5, 0.0]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let gradient = |var: &Var| gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!((gradient(&x), gradient(&weight), gradient(&bias)), (vec![0.0; 2], vec![0.0; 2], vec![1.0, 0.0]));
    assert_eq!(mean.to_vec1::<f32>().unwrap(), [1.5, -1.0]);
    assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
}

#[test]
fn evaluation_uses_the_given_statistics() {
    // (5 − 1) / √(3.75 + 0.25) · 3 − 1 = 5; ReLU6 leaves it; (9 − 1) / 2 · 3 − 1 = 11 becomes 6.
    let x = Tensor::new(&[[[[5f64, 9.0]]]], &Device::Cpu).unwrap();
    let one = |value: f64| Tensor::new(&[value], &Device::Cpu).unwrap();
    let y = batch_norm_eval(&x, &one(3.0), &one(-1.0), &one(1.0), &one(3.75), 0.25, Activation::Relu6).unwrap();
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [5.0, 6.0]);
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let x = random(&[1, 2, 3, 3], 0);
    let (two, three) = (random(&[2], 1), random(&[3], 2));
    let single = two.to_dtype(DType::F32).unwrap();
    let train = |x: &Tensor, weight: &Tensor, bias: &Tensor, mean: &Tensor, momentum, eps| {
        let running = RunningStatistics { mean, var: &two, momentum };
        batch_norm_train(x, weight, bias, Some(running), eps, Activation::Relu).unwrap_err().to_string()
    };
    let strided = random(&[2, 2], 3).narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    for (message, expected) in [
        (train(&three, &two, &two, &two, 0.1, EPS), "x has shape [3], expected [N,C,H,W] with no size 0"),
        (train(&x, &three, &two, &two, 0.1, EPS), "weight has shape [3], expected [2]"),
        (train(&x, &two, &single, &two, 0.1, EPS), "bias is f32, expected f64"),
        (train(&x, &two, &two, &three, 0.1, EPS), "mean has shape [3], expected [2]"),
        (train(&x, &two, &two, &two, 1.5, EPS), "momentum is 1.5, expected a number in [0, 1]"),
        (train(&x, &two, &two, &two, 0.1, 0.0), "eps is 0, expected a finite number above 0"),
        (train(&x, &two, &two, &strided, 0.1, EPS), "mean is strided, expected a contiguous tensor"),
    ] {
        assert_eq!(message, format!("batch_norm_train: {expected}"));
    }
}
