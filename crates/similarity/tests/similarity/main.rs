//! Tests of the similarity losses, one program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod distillation;
mod extremes;
mod gradients;
mod invariants;
mod reference;
mod refusals;
mod resolution;
mod task;
mod vectors;

use candle_core::{DType, Device, Tensor, Var};
use dsd_random::{Stream, name_hash};

/// Normal numbers that depend on the name and the shape's order of elements alone.
fn normal(name: &str, shape: &[usize], scale: f64) -> Tensor {
    let mut stream = Stream::new(1, "similarity tests", 0, name_hash(name));
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| scale * stream.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Feature layers of the given shapes.
fn layers(name: &str, shapes: &[[usize; 4]]) -> Vec<Tensor> {
    shapes.iter().enumerate().map(|(index, shape)| normal(&format!("{name}.{index}"), shape, 1.0)).collect()
}

/// A mask with about the given share of counted pixels.
fn mask(name: &str, shape: &[usize; 3], counted: f64) -> Tensor {
    let mut stream = Stream::new(1, "similarity masks", 0, name_hash(name));
    let pixels: Vec<u8> = (0..shape.iter().product()).map(|_| u8::from(stream.chance(counted))).collect();
    Tensor::from_vec(pixels, shape.as_slice(), &Device::Cpu).unwrap()
}

fn scalar(value: &Tensor) -> f64 {
    assert!(value.dims().is_empty(), "a loss is a scalar, got shape {:?}", value.dims());
    value.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn variables(tensors: &[Tensor]) -> Vec<Var> {
    tensors.iter().map(|tensor| Var::from_tensor(tensor).unwrap()).collect()
}

fn tensors(variables: &[Var]) -> Vec<Tensor> {
    variables.iter().map(|variable| variable.as_tensor().clone()).collect()
}

/// |got − expected| ≤ tolerance · (1 + |expected|) everywhere; the worst element is printed.
fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{what}[{index}]: got {got}, expected {expected}");
    }
}
