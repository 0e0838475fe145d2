//! Cross-entropy as a graph node: gradients, ignored pixels and errors.

use candle_core::{Device, Var};
use dsd_random::Stream;

use super::*;
use crate::gradcheck::check_gradients;

fn random(shape: &[usize]) -> Tensor {
    let mut stream = Stream::new(13, "cross entropy ops test", 0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn labels(shape: [usize; 4], ignored_share: f64) -> Tensor {
    let [n, c, h, w] = shape;
    let mut stream = Stream::new(13, "cross entropy ops labels", 0, 0);
    let mut draw = || if stream.chance(ignored_share) { 255 } else { stream.below(c) as u8 };
    Tensor::from_vec((0..n * h * w).map(|_| draw()).collect::<Vec<u8>>(), (n, h, w), &Device::Cpu).unwrap()
}

const EVEN: CrossEntropyOptions<'_> = CrossEntropyOptions { ignore_label: 255, class_weights: None };

#[test]
fn gradients_are_those_of_central_differences() {
    let mut rows = 0;
    for shape in [[2, 3, 5, 7], [1, 4, 3, 2], [2, 1, 3, 2], [1, 2, 1, 1]] {
        let weights: Vec<f64> = (0..shape[1]).map(|c| 0.5 + c as f64).collect();
        for class_weights in [None, Some(weights.as_slice())] {
            for ignored in [0.0, 0.3, 1.0] {
                let labels = labels(shape, ignored);
                let options = CrossEntropyOptions { class_weights, ..EVEN };
                let name = format!("cross_entropy {shape:?} {ignored} {class_weights:?}");
                check_gradients(&name, &[random(&shape)], |i| Ok(cross_entropy(&i[0], &labels, options)?)).unwrap();
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 24);
}

#[test]
fn gradients_hold_for_strided_logits_and_labels_and_a_factor() {
    let labels = labels([2, 3, 4, 5], 0.2).transpose(1, 2).unwrap();
    check_gradients("cross_entropy strided", &[random(&[2, 4, 5, 3])], |i| {
        let logits = i[0].transpose(1, 3)?.transpose(2, 3)?;
        let logits = logits.transpose(2, 3)?;
        (cross_entropy(&logits, &labels, EVEN)? * -2.5)? + logits.sqr()?.sum_all()?
    })
    .unwrap();
}

#[test]
fn nothing_counted_is_zero_with_zero_gradient() {
    let logits = Var::from_tensor(&random(&[1, 3, 2, 2]).to_dtype(DType::F32).unwrap()).unwrap();
    let labels = labels([1, 3, 2, 2], 1.0);
    let loss = cross_entropy(&logits, &labels, EVEN).unwrap();
    assert_eq!((loss.dims(), loss.to_scalar::<f32>().unwrap()), ([].as_slice(), 0.0));
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(gradient, [0.0; 12]);
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let logits = random(&[1, 2, 1, 3]);
    let label = |values: [u8; 3]| Tensor::new(&[[values]], &Device::Cpu).unwrap();
    let message = |labels: &Tensor, options| cross_entropy(&logits, labels, options).unwrap_err().to_string();
    let wide = label([0; 3]).to_dtype(DType::U32).unwrap();
    for (message, expected) in [
        (message(&wide, EVEN), "labels is u32, expected u8"),
        (message(&label([0; 3]).squeeze(0).unwrap(), EVEN), "labels has shape [1, 3], expected [1, 1, 3]"),
        (
            message(&label([0, 255, 2]), EVEN),
            "labels is 2 at pixel (n 0, h 0, w 2), expected a class id below 2 (the number of classes) or the ignored \
             label 255",
        ),
        (
            message(&label([0; 3]), CrossEntropyOptions { class_weights: Some(&[1.0]), ..EVEN }),
            "class_weights has 1 elements, expected 2",
        ),
    ] {
        assert_eq!(message, format!("cross_entropy: {expected}"));
    }
}
