//! Activations as graph nodes: gradients, kinks and errors.

use candle_core::{Device, Var};
use dsd_random::Stream;

use super::*;
use crate::gradcheck::check_gradients;

fn random(shape: &[usize], index: u64) -> Tensor {
    let mut stream = Stream::new(12, "activation ops test", 0, index);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| 3.0 * stream.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

const SHAPES: [[usize; 4]; 3] = [[2, 3, 5, 7], [1, 1, 3, 4], [3, 4, 1, 1]];

#[test]
fn gradients_are_those_of_central_differences() {
    let mut rows = 0;
    type Operation = fn(&Tensor) -> Result<Tensor>;
    let operations: [(&str, Operation); 4] = [
        ("relu", relu),
        ("relu6", relu6),
        ("softmax_channels", softmax_channels),
        ("log_softmax_channels", log_softmax_channels),
    ];
    for shape in SHAPES {
        for (name, operation) in operations {
            let x = random(&shape, 0);
            check_gradients(&format!("{name} {shape:?}"), std::slice::from_ref(&x), |i| Ok(operation(&i[0])?)).unwrap();
            check_gradients(&format!("{name} {shape:?} strided, twice"), &[x], |i| {
                let x = i[0].transpose(1, 3)?;
                operation(&x)?.transpose(1, 2)? * x.transpose(1, 2)?
            })
            .unwrap();
            rows += 2;
        }
        for slopes in [1, shape[1]] {
            let inputs = [random(&shape, 0), random(&[slopes], 1)];
            check_gradients(&format!("prelu {shape:?} {slopes}"), &inputs, |i| Ok(prelu(&i[0], &i[1])?)).unwrap();
            rows += 1;
        }
    }
    let x = random(&[5, 4], 0);
    check_gradients("softmax_channels of rank 2", &[x], |i| Ok(softmax_channels(&i[0])?)).unwrap();
    assert_eq!(rows, 30);
}

#[test]
fn prelu_with_a_strided_input_reaches_only_what_is_tracked() {
    let x = Var::from_tensor(&random(&[2, 3, 2, 2], 0)).unwrap();
    let weight = random(&[2], 1);
    let y = prelu(&x.transpose(1, 3).unwrap(), &weight).unwrap();
    assert_eq!(y.dims(), [2, 2, 2, 3]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
}

#[test]
fn derivatives_at_the_corners_are_those_of_pytorch() {
    let at = |operation: &dyn Fn(&Tensor) -> Result<Tensor>, values: &[f32]| {
        let x = Var::new(values, &Device::Cpu).unwrap().reshape((1, values.len())).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let gradients = operation(&x).unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(at(&relu, &[-0.0, 0.0, 1.0]), [0.0, 0.0, 1.0]);
    assert_eq!(at(&relu6, &[0.0, 3.0, 6.0]), [0.0, 1.0, 0.0]);
    let slope = Tensor::new(&[0.25f32], &Device::Cpu).unwrap();
    assert_eq!(at(&|x| prelu(x, &slope), &[-1.0, 0.0, 1.0]), [0.25, 0.25, 1.0]);
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let bytes = Tensor::new(&[1u8], &Device::Cpu).unwrap();
    let vector = Tensor::new(&[1f32], &Device::Cpu).unwrap();
    let x = random(&[1, 2, 1, 1], 0);
    for (message, expected) in [
        (relu(&bytes).unwrap_err(), "relu: x is u8, expected f32 or f64"),
        (softmax_channels(&vector).unwrap_err(), "softmax_channels: x has shape [1], expected [N,C,…] with no size 0"),
        (prelu(&x, &random(&[3], 0)).unwrap_err(), "prelu: weight has shape [3], expected [2] or [1]"),
        (prelu(&x, &vector).unwrap_err(), "prelu: weight is f32, expected f64"),
    ] {
        assert_eq!(message.to_string(), expected);
    }
}
