//! Dropped planes: which, how they scale, what passes back.

use candle_core::{DType, Device, Var};

use super::*;
use crate::gradcheck::check_gradients;

fn stream() -> Stream {
    Stream::new(14, "dropout", 0, 0)
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn whole_planes_are_dropped_and_the_others_grow() {
    let x = Tensor::ones((3, 40, 2, 3), DType::F32, &Device::Cpu).unwrap();
    let y = values(&dropout2d(&x, 0.75, &mut stream()).unwrap());
    let planes: Vec<f32> = y.chunks(6).map(|plane| plane[0]).collect();
    assert!(y.chunks(6).all(|plane| plane.iter().all(|y| *y == plane[0])));
    assert!(planes.iter().all(|y| *y == 0.0 || *y == 4.0));
    let kept = planes.iter().filter(|y| **y > 0.0).count();
    assert!((15..=45).contains(&kept), "{kept} of 120 kept, 30 expected");
    assert_eq!(values(&dropout2d(&x, 0.75, &mut stream()).unwrap()), y, "the same stream gives the same mask");
    let mut used = stream();
    used.bits();
    assert_ne!(values(&dropout2d(&x, 0.75, &mut used).unwrap()), y);
}

#[test]
fn the_ends_of_the_range_are_identity_and_zeros() {
    let x = Var::new(&[[[[1f32, f32::NAN]]]], &Device::Cpu).unwrap();
    assert!(values(&dropout2d(&x, 0.0, &mut stream()).unwrap())[1].is_nan());
    let y = dropout2d(&x, 1.0, &mut stream()).unwrap();
    assert_eq!(values(&y), [0.0, 0.0]);
    assert_eq!(values(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap()), [0.0, 0.0]);
    for (probability, shown) in [(-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        let error = dropout2d(&x, probability, &mut stream()).unwrap_err().to_string();
        assert_eq!(error, format!("dropout2d: probability is {shown}, expected a number in [0, 1]"));
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    for shape in [[2, 3, 5, 7], [1, 1, 3, 4]] {
        let x = Tensor::arange(0f64, shape.iter().product::<usize>() as f64, &Device::Cpu).unwrap();
        let x = x.reshape(&shape).unwrap();
        check_gradients(&format!("dropout2d {shape:?}"), &[x], |i| {
            let x = i[0].transpose(2, 3)?;
            dropout2d(&x, 0.4, &mut stream())? * x
        })
        .unwrap();
    }
}
