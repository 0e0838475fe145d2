//! Rows of batch norm, activations, dropout, softmax and cross-entropy.

use std::slice::from_ref;
use std::sync::Arc;

use candle_core::Tensor;
use dsd_ops::{
    Activation, CrossEntropyOptions, RunningStatistics, adaptive_avg_pool2d, add, add_relu, batch_norm_eval,
    batch_norm_prelu_eval, batch_norm_prelu_train, batch_norm_train, concat, cross_entropy, dropout2d, first,
    hard_sigmoid, hard_swish, log_softmax_channels, pad_end, prelu, recompute, relu, relu6, scale_channels, sigmoid,
    softmax_channels,
};
use dsd_random::Stream;

use super::Table;
use crate::inputs::{KINKS, away_from_kinks, from, labels, normal, values};

const ACTIVATIONS: [(&str, Activation); 5] = [
    ("identity", Activation::Identity),
    ("relu", Activation::Relu),
    ("relu6", Activation::Relu6),
    ("hard swish", Activation::HardSwish),
    ("sigmoid", Activation::Sigmoid),
];
const EPS: f64 = 1e-5;

pub(super) fn rows(table: &mut Table) {
    batch_norm_rows(table);
    activation_rows(table);
    softmax_rows(table);
    cross_entropy_rows(table);
}

/// x, weight and bias whose normalised values reach the kinks of the activations and stay away from them by 0.005, for
/// the batch's own statistics and for `statistics`.
fn normalisable(seed: u64, shape: &[usize; 4]) -> [Tensor; 3] {
    let channels = shape[1];
    let draw = |seed: u64| {
        let x = ((normal(seed, shape) * 2.0).unwrap() + 1.0).unwrap();
        let weight = ((normal(seed + 1, &[channels]).abs().unwrap() * 2.0).unwrap() + 1.5).unwrap();
        [x, weight, (normal(seed + 2, &[channels]) + 3.0).unwrap()]
    };
    let clear = |[x, weight, bias]: &[Tensor; 3]| {
        let (mean, var) = statistics(channels);
        let train = batch_norm_train(x, weight, bias, None, EPS, Activation::Identity).unwrap();
        let eval = batch_norm_eval(x, weight, bias, &mean, &var, EPS, Activation::Identity).unwrap();
        let outputs = [values(&train), values(&eval)].concat();
        outputs.iter().all(|y| KINKS.iter().all(|kink| (y - kink).abs() > 0.005))
    };
    (0..1000).map(|attempt| draw(1000 * seed + 3 * attempt)).find(clear).unwrap()
}

fn statistics(channels: usize) -> (Tensor, Tensor) {
    (from(&[channels], |c| 0.5 - 0.3 * c as f64), from(&[channels], |c| 1.5 + 0.7 * c as f64))
}

fn batch_norm_rows(table: &mut Table) {
    let shapes: [(&str, [usize; 4]); 6] = [
        ("2x3x4x5", [2, 3, 4, 5]),
        ("one image", [1, 2, 3, 5]),
        ("one channel", [2, 1, 3, 4]),
        ("one pixel per image", [5, 2, 1, 1]),
        ("two values per channel", [2, 2, 1, 1]),
        ("larger", [2, 2, 9, 7]),
    ];
    for (name, activation) in ACTIVATIONS {
        for (what, shape) in shapes {
            let inputs = normalisable(51, &shape);
            let (mean, var) = statistics(shape[1]);
            table.row("batch_norm_train", format!("{what}, {name}"), &inputs, move |t| {
                batch_norm_train(&t[0], &t[1], &t[2], None, EPS, activation)
            });
            table.row("batch_norm_eval", format!("{what}, {name}"), &inputs, move |t| {
                batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, EPS, activation)
            });
        }
        let inputs = normalisable(52, &[2, 2, 4, 3]);
        table.situations("batch_norm_train", &inputs, move |t| {
            batch_norm_train(&t[0], &t[1], &t[2], None, EPS, activation)
        });
        let (mean, var) = statistics(2);
        table.situations("batch_norm_eval", &inputs, move |t| {
            batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, EPS, activation)
        });
        let inputs = normalisable(53, &[1, 3, 1, 1]);
        let (mean, var) = statistics(3);
        table.row("batch_norm_eval", format!("one value per channel, {name}"), &inputs, move |t| {
            batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, EPS, activation)
        });
        let bias = [from(&[3], |c| 1.0 + 3.0 * c as f64)];
        table.row("batch_norm_train", format!("one value per channel, bias, {name}"), &bias, move |t| {
            batch_norm_train(&inputs[0], &inputs[1], &t[0], None, EPS, activation)
        });
    }
    for (what, shape) in shapes {
        for slopes in [1, shape[1]] {
            let [x, weight, bias] = normalisable(57, &shape);
            let inputs = [x, weight, bias, normal(58, &[slopes])];
            let (mean, var) = statistics(shape[1]);
            table.row("batch_norm_prelu_train", format!("{what}, {slopes} slopes"), &inputs, |t| {
                batch_norm_prelu_train(&t[0], &t[1], &t[2], &t[3], None, EPS)
            });
            table.row("batch_norm_prelu_eval", format!("{what}, {slopes} slopes"), &inputs, move |t| {
                batch_norm_prelu_eval(&t[0], &t[1], &t[2], &t[3], &mean, &var, EPS)
            });
        }
    }
    let [x, weight, bias] = normalisable(59, &[2, 2, 4, 3]);
    let inputs = [x, weight, bias, normal(60, &[2])];
    table.situations("batch_norm_prelu_train", &inputs, |t| {
        batch_norm_prelu_train(&t[0], &t[1], &t[2], &t[3], None, EPS)
    });
    let (mean, var) = statistics(2);
    table.situations("batch_norm_prelu_eval", &inputs, move |t| {
        batch_norm_prelu_eval(&t[0], &t[1], &t[2], &t[3], &mean, &var, EPS)
    });
    table.row("batch_norm_train", "with running statistics", &normalisable(54, &[2, 3, 4, 3]), |t| {
        let (mean, var) = statistics(3);
        let running = RunningStatistics { mean: &mean, var: &var, momentum: 0.1 };
        batch_norm_train(&t[0], &t[1], &t[2], Some(running), EPS, Activation::Identity)
    });
    table.row("batch_norm_train", "one value per channel, x and weight", &normalisable(55, &[1, 3, 1, 1])[..2], |t| {
        let bias = from(&[3], |c| c as f64 + 0.5);
        batch_norm_train(&t[0], &t[1], &bias, None, EPS, Activation::Identity)
    });
    table.row("batch_norm_train", "negative and zero weight", &normalisable(56, &[2, 3, 3, 4])[..1], |t| {
        let (weight, bias) = (from(&[3], |c| c as f64 - 1.0), from(&[3], |c| 9.0 * c as f64 - 8.0));
        batch_norm_train(&t[0], &weight, &bias, None, EPS, Activation::Identity)
    });
}

fn activation_rows(table: &mut Table) {
    for (what, shape) in [("2x3x4x5", [2, 3, 4, 5]), ("one channel", [1, 1, 5, 3]), ("one pixel", [1, 4, 1, 1])] {
        let x = away_from_kinks(61, &shape);
        let channels = shape[1];
        table.row("relu", what, from_ref(&x), |t| relu(&t[0]));
        table.row("relu6", what, from_ref(&x), |t| relu6(&t[0]));
        table.row("hard_swish", what, from_ref(&x), |t| hard_swish(&t[0]));
        table.row("hard_sigmoid", what, from_ref(&x), |t| hard_sigmoid(&t[0]));
        table.row("sigmoid", what, from_ref(&x), |t| sigmoid(&t[0]));
        let half = (&x * 0.5).unwrap();
        table.row("add_relu", what, &[half.clone(), half.affine(1.0, 0.001).unwrap()], |t| add_relu(&t[0], &t[1]));
        table.row("scale_channels", what, &[x.clone(), normal(68, &[shape[0], channels, 1, 1])], |t| {
            scale_channels(&t[0], &t[1])
        });
        table.row("prelu", what, &[x.clone(), normal(62, &[channels])], |t| prelu(&t[0], &t[1]));
        table.row("prelu", format!("{what}, one weight"), &[x, normal(63, &[1])], |t| prelu(&t[0], &t[1]));
        for probability in [0.0, 0.4] {
            table.row("dropout2d", format!("{what}, probability {probability}"), &[normal(64, &shape)], move |t| {
                dropout2d(&t[0], probability, &mut Stream::new(1, "dropout", 0, 0))
            });
        }
    }
    let x = away_from_kinks(65, &[2, 3, 4, 3]);
    table.situations("relu", from_ref(&x), |t| relu(&t[0]));
    table.situations("relu6", from_ref(&x), |t| relu6(&t[0]));
    table.situations("hard_swish", from_ref(&x), |t| hard_swish(&t[0]));
    table.situations("hard_sigmoid", from_ref(&x), |t| hard_sigmoid(&t[0]));
    table.situations("sigmoid", from_ref(&x), |t| sigmoid(&t[0]));
    // The sum stays away from 0: the second is a part of the first, of either sign.
    let part = x.affine(-0.4, 0.0).unwrap();
    table.situations("add_relu", &[x.clone(), part], |t| add_relu(&t[0], &t[1]));
    table.row("add_relu", "one tensor twice", from_ref(&x), |t| add_relu(&t[0], &t[0]));
    let y = normal(70, &[2, 3, 4, 3]);
    table.situations("add", &[x.clone(), y.clone()], |t| add(&t[0], &t[1]));
    table.row("add", "one tensor twice", from_ref(&x), |t| add(&t[0], &t[0]));
    for axis in 0..4 {
        table.situations("concat", &[x.clone(), y.clone()], move |t| concat(&[&t[0], &t[1]], axis));
        table.row("concat", format!("a part twice, axis {axis}"), &[x.clone(), y.clone()], move |t| {
            concat(&[&t[0], &t[1], &t[0]], axis)
        });
        table.situations("pad_end", from_ref(&x), move |t| pad_end(&t[0], axis, 2));
        table.situations("first", from_ref(&x), move |t| first(&t[0], axis, 1));
    }
    table.situations("recompute", from_ref(&x), |t| {
        recompute(&t[0], Arc::new(|x| sigmoid(x).map_err(candle_core::Error::wrap)? * x))
    });
    table.situations("scale_channels", &[x.clone(), normal(69, &[2, 3, 1, 1])], |t| scale_channels(&t[0], &t[1]));
    table.row("scale_channels", "squeeze and excitation", from_ref(&x), |t| {
        scale_channels(&t[0], &sigmoid(&adaptive_avg_pool2d(&t[0], [1, 1])?)?)
    });
    table.situations("prelu", &[x.clone(), normal(66, &[3])], |t| prelu(&t[0], &t[1]));
    table.situations("prelu", &[x.clone(), normal(67, &[1])], |t| prelu(&t[0], &t[1]));
    table.situations("dropout2d", &[x], |t| dropout2d(&t[0], 0.4, &mut Stream::new(2, "dropout", 0, 0)));
}

fn softmax_rows(table: &mut Table) {
    for (what, shape) in [("2x5x3x2", [2, 5, 3, 2]), ("one channel", [1, 1, 3, 4]), ("one pixel", [1, 6, 1, 1])] {
        table.row("softmax_channels", what, &[normal(71, &shape)], |t| softmax_channels(&t[0]));
        table.row("log_softmax_channels", what, &[normal(72, &shape)], |t| log_softmax_channels(&t[0]));
    }
    let spread = (normal(73, &[1, 4, 3, 2]) * 8.0).unwrap();
    table.row("softmax_channels", "peaked", from_ref(&spread), |t| softmax_channels(&t[0]));
    table.row("log_softmax_channels", "peaked", &[spread], |t| log_softmax_channels(&t[0]));
    let x = [normal(74, &[2, 4, 3, 5])];
    table.situations("softmax_channels", &x, |t| softmax_channels(&t[0]));
    table.situations("log_softmax_channels", &x, |t| log_softmax_channels(&t[0]));
}

fn cross_entropy_rows(table: &mut Table) {
    const WEIGHTS: [f64; 4] = [0.5, 2.0, 1.25, 3.0];
    const ONE_WEIGHT_ZERO: [f64; 4] = [1.0, 0.0, 2.5, 1.0];
    type Case = (&'static str, [usize; 4], f64, u8, Option<&'static [f64]>);
    let cases: [Case; 11] = [
        ("plain", [2, 4, 3, 5], 0.0, 255, None),
        ("some ignored", [2, 4, 3, 5], 0.4, 255, None),
        ("all ignored", [2, 4, 3, 5], 1.0, 255, None),
        ("an ignored class", [2, 4, 3, 5], 0.0, 2, None),
        ("weights", [2, 4, 3, 5], 0.0, 255, Some(&WEIGHTS)),
        ("weights, some ignored", [2, 4, 3, 5], 0.4, 255, Some(&WEIGHTS)),
        ("weights, all ignored", [2, 4, 3, 5], 1.0, 255, Some(&WEIGHTS)),
        ("a weight of zero", [1, 4, 5, 4], 0.2, 255, Some(&ONE_WEIGHT_ZERO)),
        ("one channel", [1, 1, 3, 4], 0.0, 255, None),
        ("one pixel", [1, 4, 1, 1], 0.0, 255, None),
        ("large", [2, 4, 9, 11], 0.2, 255, None),
    ];
    for (what, shape, ignored, ignore_label, class_weights) in cases {
        let [n, c, h, w] = shape;
        let labels = labels(81, &[n, h, w], c, ignored, ignore_label);
        table.row("cross_entropy", what, &[normal(82, &shape)], move |t| {
            cross_entropy(&t[0], &labels, CrossEntropyOptions { ignore_label, class_weights })
        });
    }
    let labels = labels(83, &[2, 3, 5], 4, 0.3, 255);
    let strided = labels.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    let options = CrossEntropyOptions { ignore_label: 255, class_weights: Some(&WEIGHTS) };
    table.row("cross_entropy", "strided labels", &[normal(84, &[2, 4, 3, 5])], move |t| {
        cross_entropy(&t[0], &strided, options)
    });
    table.situations("cross_entropy", &[normal(85, &[2, 4, 3, 5])], move |t| cross_entropy(&t[0], &labels, options));
    table.row("cross_entropy", "scaled by another tensor", &[normal(86, &[1, 4, 2, 3]), normal(87, &[])], |t| {
        let labels = crate::inputs::labels(88, &[1, 2, 3], 4, 0.0, 255);
        let options = CrossEntropyOptions { ignore_label: 255, class_weights: None };
        Ok((cross_entropy(&t[0], &labels, options)? * &t[1])?)
    });
}
