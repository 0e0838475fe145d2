//! The optimisers against PyTorch, against their own saved state and against arithmetic by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use dsd_models::ParamStore;
use dsd_train::optimiser::Optimiser;
use dsd_train::recipe;
use safetensors::SafeTensors;
use serde_json::Value;

const STEPS: usize = 10;
const SIZE: usize = 7;
/// Ten steps in f32 against ten in f64.
const RELATIVE: f64 = 1e-5;
const ABSOLUTE: f64 = 1e-6;

/// One parameter in a store, with an optimiser over it.
struct Bench {
    store: ParamStore,
    parameter: Tensor,
    optimiser: Optimiser,
}

impl Bench {
    fn new(settings: recipe::Optimiser, start: &[f32]) -> Self {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let parameter = store.builder().get(start.len(), "weight").unwrap();
        let bench = Self { optimiser: Optimiser::new(settings, store.parameters()), store, parameter };
        bench.set(start);
        bench
    }

    fn set(&self, values: &[f32]) {
        let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        self.store.apply(&BTreeMap::from([("weight".to_string(), tensor)])).unwrap();
    }

    fn values(&self) -> Vec<f32> {
        self.parameter.to_vec1().unwrap()
    }

    /// The gradient of Σ p·g is g to the bit.
    fn gradients(&self, gradient: &[f32]) -> GradStore {
        let gradient = Tensor::from_slice(gradient, gradient.len(), &Device::Cpu).unwrap();
        (&self.parameter * gradient).unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn step(&mut self, gradient: &[f32], learning_rate: f64) -> Vec<f32> {
        let gradients = self.gradients(gradient);
        self.optimiser.step(&gradients, learning_rate).unwrap();
        self.values()
    }
}

/// A case of the reference file.
struct Case {
    name: String,
    settings: recipe::Optimiser,
    rates: Vec<f64>,
    start: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    expected: Vec<Vec<f64>>,
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/optimiser.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let reference = &header.metadata().as_ref().unwrap()["reference"];
    let reference: Value = serde_json::from_str(reference).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: String, count: usize| -> Vec<f64> {
        let data = file.tensor(&name).unwrap().data();
        assert_eq!(data.len(), 8 * count, "{name}");
        data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
    let cases = reference["cases"].as_object().unwrap();
    cases
        .iter()
        .map(|(name, facts)| Case {
            name: name.clone(),
            settings: settings(facts),
            rates: facts["lr"].as_array().unwrap().iter().map(|rate| rate.as_f64().unwrap()).collect(),
            start: narrow(&numbers(format!("{name}/param0"), SIZE)),
            gradients: numbers(format!("{name}/grads"), STEPS * SIZE).chunks(SIZE).map(narrow).collect(),
            expected: numbers(format!("{name}/params"), STEPS * SIZE).chunks(SIZE).map(<[f64]>::to_vec).collect(),
        })
        .collect()
}

fn settings(facts: &Value) -> recipe::Optimiser {
    let number = |key: &str| facts[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {facts}"));
    let (weight_decay, learning_rate) = (number("weight_decay"), facts["lr"][0].as_f64().unwrap());
    match facts["optimiser"].as_str().unwrap() {
        "sgd" => recipe::Optimiser::Sgd {
            learning_rate,
            momentum: number("momentum"),
            nesterov: facts["nesterov"].as_bool().unwrap(),
            weight_decay,
            decay_all: true,
            clip_norm: None,
        },
        "adamw" => recipe::Optimiser::Adamw {
            learning_rate,
            betas: [number("beta1"), number("beta2")],
            eps: number("eps"),
            weight_decay,
            decay_all: true,
            clip_norm: None,
        },
        other => panic!("unknown optimiser {other}"),
    }
}

fn plain_sgd(clip_norm: Option<f64>) -> recipe::Optimiser {
    recipe::Optimiser::Sgd {
        learning_rate: 1.0,
        momentum: 0.0,
        nesterov: false,
        weight_decay: 0.0,
        decay_all: true,
        clip_norm,
    }
}

#[test]
fn ten_steps_equal_pytorch() {
    let cases = cases();
    assert_eq!(cases.len(), 6, "cases of the reference file");
    for case in &cases {
        let mut bench = Bench::new(case.settings, &case.start);
        for step in 0..STEPS {
            let got = bench.step(&case.gradients[step], case.rates[step]);
            for (index, (got, expected)) in got.iter().zip(&case.expected[step]).enumerate() {
                let error = (f64::from(*got) - expected).abs();
                let name = &case.name;
                assert!(
                    error <= ABSOLUTE + RELATIVE * expected.abs(),
                    "{name}, step {}, element {index}: {got}, expected {expected}",
                    step + 1
                );
            }
        }
        assert_eq!(bench.optimiser.updates(), STEPS as u64);
    }
    println!("figure N3 optimisers {}", cases.len());
}

#[test]
fn an_optimiser_restored_after_five_steps_goes_on_to_the_bit() {
    for case in cases() {
        let mut unbroken = Bench::new(case.settings, &case.start);
        for step in 0..5 {
            unbroken.step(&case.gradients[step], case.rates[step]);
        }
        let saved = unbroken.optimiser.tensors().unwrap();
        let mut continued = Bench::new(case.settings, &unbroken.values());
        continued.optimiser.restore(&saved, unbroken.optimiser.updates()).unwrap();
        for step in 5..STEPS {
            let expected = unbroken.step(&case.gradients[step], case.rates[step]);
            let got = continued.step(&case.gradients[step], case.rates[step]);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&expected), "{}, step {}", case.name, step + 1);
        }
    }
}

#[test]
fn a_saved_state_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let case = cases().remove(0);
    let mut bench = Bench::new(case.settings, &case.start);
    let mut saved = bench.optimiser.tensors().unwrap();
    let short = Tensor::zeros(SIZE - 1, DType::F32, &Device::Cpu).unwrap();
    saved.insert("weight.first".to_string(), short);
    let message = bench.optimiser.restore(&saved, 9).unwrap_err().to_string();
    assert!(message.contains("weight.first has 6 elements, expected 7"), "{message}");
    let message = bench.optimiser.restore(&BTreeMap::new(), 9).unwrap_err().to_string();
    assert!(message.contains("no weight.first"), "{message}");
    assert_eq!(bench.optimiser.updates(), 0);
}

#[test]
fn clipping_scales_the_gradient_to_the_limit_and_leaves_a_short_one_alone() {
    // |(3, 4)| = 5, limit 1, rate 1: the step is (0.6, 0.8).
    let mut bench = Bench::new(plain_sgd(Some(1.0)), &[0.0, 0.0]);
    let got = bench.step(&[3.0, 4.0], 1.0);
    assert!((got[0] + 0.6).abs() < 1e-6 && (got[1] + 0.8).abs() < 1e-6, "{got:?}");

    let mut bench = Bench::new(plain_sgd(Some(10.0)), &[0.0, 0.0]);
    assert_eq!(bench.step(&[3.0, 4.0], 1.0), [-3.0, -4.0]);

    // With momentum too, clipping is the same as scaling by hand.
    let momentum = |clip_norm| recipe::Optimiser::Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 0.01,
        decay_all: true,
        clip_norm,
    };
    let case = cases().remove(0);
    let mut clipped = Bench::new(momentum(Some(0.5)), &case.start);
    let mut by_hand = Bench::new(momentum(None), &case.start);
    for gradient in &case.gradients {
        let norm = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let factor = (0.5 / norm).min(1.0);
        let scaled: Vec<f32> = gradient.iter().map(|&value| (f64::from(value) * factor) as f32).collect();
        let (got, expected) = (clipped.step(gradient, 0.1), by_hand.step(&scaled, 0.1));
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "{got}, expected {expected}");
        }
    }
}

#[test]
fn clipping_refuses_an_infinite_gradient_and_changes_nothing() {
    let mut bench = Bench::new(plain_sgd(Some(1.0)), &[1.0, 2.0]);
    let gradients = bench.gradients(&[f32::INFINITY, 1.0]);
    let message = bench.optimiser.step(&gradients, 1.0).unwrap_err().to_string();
    assert!(message.contains("norm is inf"), "{message}");
    assert_eq!((bench.values(), bench.optimiser.updates()), (vec![1.0, 2.0], 0));
}
