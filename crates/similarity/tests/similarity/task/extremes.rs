//! Inputs at the edge: values and gradients stay finite, in f32 and f64.

use candle_core::{DType, Device, Tensor, Var};
use dsd_similarity::ssl_distillation;

use super::super::{flat, normal, scalar};
use super::{IGNORED, all_losses, all_ssl, labels};

fn assert_finite(name: &str, logits: &Tensor, loss: impl Fn(&Tensor) -> Tensor) {
    for dtype in [DType::F32, DType::F64] {
        let logits = Var::from_tensor(&logits.to_dtype(dtype).unwrap()).unwrap();
        let loss = loss(logits.as_tensor());
        assert!(scalar(&loss).is_finite() && scalar(&loss) >= -1e-6, "{name} {dtype:?}: value {}", scalar(&loss));
        let gradient = flat(loss.backward().unwrap().get(&logits).unwrap());
        assert_eq!(gradient.into_iter().find(|slope| !slope.is_finite()), None, "{name} {dtype:?}: gradient");
    }
}

fn saturated(name: &str, shape: &[usize], size: f64) -> Tensor {
    (normal(name, shape, 1.0).sign().unwrap() * size).unwrap()
}

#[test]
fn values_and_gradients_are_finite() {
    let mut rows = 0;
    for (shape, classes) in [([2, 4, 5, 6], 3), ([1, 1, 3, 3], 1), ([1, 3, 1, 1], 3), ([1, 1, 1, 1], 1)] {
        let ids = labels("extremes", &[shape[0], shape[2], shape[3]], classes, 0.1);
        let mut inputs = vec![("zero", normal("zero", &shape, 0.0)), ("±1e4", saturated("edge", &shape, 1e4))];
        inputs.extend([1e-8, 30.0, 1e4].map(|scale| ("scaled", normal("scaled", &shape, scale))));
        for (what, logits) in &inputs {
            for (name, loss) in all_losses(shape[1]) {
                assert_finite(&format!("{name} of {what} {shape:?}"), logits, |z| loss(z, &ids).unwrap());
                rows += 1;
            }
            let teachers = [saturated("teacher", &shape, 1e4), normal("teacher", &shape, 1.0), logits.clone()];
            for teacher in &teachers {
                for cfg in all_ssl() {
                    assert_finite(&format!("distillation {cfg:?} of {what} {shape:?}"), logits, |z| {
                        ssl_distillation(z, &teacher.to_dtype(z.dtype()).unwrap(), None, cfg).unwrap()
                    });
                }
            }
        }
    }
    assert_eq!(rows, 4 * 5 * 60);
}

#[test]
fn a_nan_at_a_counted_pixel_reaches_the_loss() {
    let ids = labels("nan", &[1, 4, 5], 3, 0.0);
    let mut values = flat(&normal("nan", &[1, 3, 4, 5], 1.0));
    // The label's own logit, so that every loss reads it.
    let id = usize::from(ids.flatten_all().unwrap().to_vec1::<u8>().unwrap()[7]);
    values[id * 20 + 7] = f64::NAN;
    let logits = Tensor::from_vec(values, (1, 3, 4, 5), &Device::Cpu).unwrap();
    for (name, loss) in all_losses(3) {
        assert!(scalar(&loss(&logits, &ids).unwrap()).is_nan(), "{name}");
    }
}

#[test]
fn a_nan_at_an_ignored_pixel_changes_nothing() {
    let ids = labels("nan ignored", &[2, 4, 5], 3, 0.4);
    let logits = normal("nan ignored", &[2, 3, 4, 5], 2.0);
    let flat_ids = ids.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let mut values = flat(&logits);
    for (element, value) in values.iter_mut().enumerate() {
        if flat_ids[element / 60 * 20 + element % 20] == IGNORED {
            *value = f64::NAN;
        }
    }
    let poisoned = Tensor::from_vec(values, (2, 3, 4, 5), &Device::Cpu).unwrap();
    for (name, loss) in all_losses(3) {
        let of = |logits: &Tensor| {
            let logits = Var::from_tensor(logits).unwrap();
            let value = loss(logits.as_tensor(), &ids).unwrap();
            (scalar(&value), flat(value.backward().unwrap().get(&logits).unwrap()))
        };
        assert_eq!(of(&poisoned), of(&logits), "{name}");
    }
}
