//! Every kernel on inputs of a few numbers, f32 against f64: small enough for Miri, which checks each access that
//! `unsafe` code makes (docs/architecture.md, Unsafe code).

use dsd_kernels::activation::{self, Activation, Planes, Softmax};
use dsd_kernels::batch_norm::{self, Affine, Source};
use dsd_kernels::conv_transpose2d::{self, ConvTranspose2dShape};
use dsd_kernels::conv2d::{self, Algorithm, Conv2dShape};
use dsd_kernels::cross_entropy::{self, Sizes, Weighting};
use dsd_kernels::max_pool2d::Pool2d;
use dsd_kernels::{avg_pool2d, join, max_pool2d, optimiser, resize, scale_channels};

const PLANES: Planes = Planes { batch: 2, channels: 3, pixels: 5 };

/// Numbers between −1 and 1, all different.
fn numbers(len: usize, salt: usize) -> Vec<f64> {
    (0..len).map(|index| ((index * 37 + salt * 101) % 211) as f64 / 105.5 - 1.0).map(|x| x + 1e-3).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= 2e-5 * scale, "{what}, {index}: {found} instead of {expected}");
    }
}

/// One image in groups, strides, dilations; enough channels for Winograd's blocks of 16 with a rest.
fn shapes() -> dsd_kernels::Result<[(Conv2dShape, &'static [Algorithm]); 8]> {
    let shape = Conv2dShape::new;
    let three = Conv2dShape { padding: [1, 1], ..shape([1, 9, 5, 6], 10, [3, 3])? };
    Ok([
        (three, &[Algorithm::Gemm, Algorithm::TapByTap, Algorithm::WinogradF2, Algorithm::WinogradF4]),
        (
            Conv2dShape { padding: [2, 2], dilation: [2, 2], ..three },
            &[Algorithm::Gemm, Algorithm::WinogradF2, Algorithm::WinogradF4],
        ),
        (Conv2dShape { padding: [3, 3], dilation: [3, 3], ..three }, &[Algorithm::TapByTap, Algorithm::WinogradPairs]),
        // Only the middle taps read anything.
        (Conv2dShape { padding: [6, 6], dilation: [6, 6], ..three }, &[Algorithm::TapByTap]),
        // So many output channels that the tasks share the sums of the gradient of the weights.
        (Conv2dShape { padding: [1, 1], ..shape([1, 16, 3, 3], 129, [3, 3])? }, &[Algorithm::WinogradF4]),
        (Conv2dShape { stride: [2, 2], padding: [1, 1], ..shape([2, 3, 5, 4], 4, [3, 3])? }, &[Algorithm::Gemm]),
        (shape([2, 4, 3, 3], 5, [1, 1])?, &[Algorithm::Gemm]),
        (
            Conv2dShape { padding: [1, 1], stride: [1, 2], groups: 3, ..shape([1, 3, 4, 5], 3, [3, 3])? },
            &[Algorithm::Gemm, Algorithm::Depthwise],
        ),
    ])
}

#[test]
fn convolutions() {
    for (shape, algorithms) in shapes().unwrap() {
        let x = numbers(shape.batch * shape.in_channels * shape.in_height * shape.in_width, 1);
        let weights = shape.out_channels * shape.in_channels / shape.groups * shape.kernel[0] * shape.kernel[1];
        let (weight, bias) = (numbers(weights, 2), numbers(shape.out_channels, 3));
        let y = conv2d::forward_vec(&shape, &x, &weight, Some(&bias)).unwrap();
        let g = numbers(y.len(), 4);
        let dx = conv2d::backward_input_vec(&shape, &weight, &g).unwrap();
        let mut dw = vec![0.0; weight.len()];
        conv2d::backward_weight(&shape, &x, &g, &mut dw).unwrap();
        let (x, weight, bias, g) = (narrow(&x), narrow(&weight), narrow(&bias), narrow(&g));
        assert_close(&conv2d::forward_vec(&shape, &x, &weight, Some(&bias)).unwrap(), &y, "chosen");
        assert_close(&conv2d::backward_input_vec(&shape, &weight, &g).unwrap(), &dx, "chosen, gradient of x");
        for algorithm in algorithms {
            let (mut own_y, mut own_dx, mut own_dw) =
                (vec![f32::NAN; y.len()], vec![f32::NAN; x.len()], vec![f32::NAN; weight.len()]);
            conv2d::forward_with(*algorithm, &shape, &x, &weight, Some(&bias), &mut own_y).unwrap();
            conv2d::backward_input_with(*algorithm, &shape, &weight, &g, &mut own_dx).unwrap();
            conv2d::backward_weight_with(*algorithm, &shape, &x, &g, &mut own_dw).unwrap();
            assert_close(&own_y, &y, &format!("{algorithm:?} {shape:?}"));
            assert_close(&own_dx, &dx, &format!("{algorithm:?} {shape:?}, gradient of x"));
            assert_close(&own_dw, &dw, &format!("{algorithm:?} {shape:?}, gradient of the weight"));
        }
    }
}

#[test]
fn transposed_convolution() {
    let shape = ConvTranspose2dShape {
        batch: 2,
        in_channels: 3,
        in_height: 2,
        in_width: 3,
        out_channels: 2,
        kernel: [3, 3],
        stride: [2, 2],
        padding: [1, 1],
        output_padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    };
    let (x, weight, bias) = (numbers(36, 1), numbers(54, 2), numbers(2, 3));
    let y = conv_transpose2d::forward_vec(&shape, &x, &weight, Some(&bias)).unwrap();
    let own = conv_transpose2d::forward_vec(&shape, &narrow(&x), &narrow(&weight), Some(&narrow(&bias))).unwrap();
    assert_close(&own, &y, "transposed convolution");
}

#[test]
fn normalisation_and_activations() {
    let (x, g, weight, bias) = (numbers(30, 1), numbers(30, 2), numbers(3, 3), numbers(3, 4));
    let slopes = [0.25, -0.5, 0.1];
    for (activation, slopes) in
        [(Activation::Relu6, None), (Activation::HardSwish, None), (Activation::Identity, Some(slopes))]
    {
        let of = |x: &[f64]| {
            let slopes = slopes.as_ref().map(|slopes| slopes.as_slice());
            let affine = Affine { weight: &weight, bias: &bias, eps: 1e-5, activation, slopes };
            let (y, statistics) = batch_norm::forward_train_vec(PLANES, x, affine).unwrap();
            let evaluated = batch_norm::forward_eval_vec(PLANES, x, affine, &statistics).unwrap();
            let dx = batch_norm::backward_vec(PLANES, [x, &g], affine, &statistics, Source::Batch, true).unwrap();
            [y, evaluated, dx.x.unwrap(), dx.weight, dx.bias, dx.slopes]
        };
        let (weight32, bias32, g32, slopes32) =
            (narrow(&weight), narrow(&bias), narrow(&g), slopes.map(|s| narrow(&s)));
        let affine = Affine { weight: &weight32, bias: &bias32, eps: 1e-5, activation, slopes: slopes32.as_deref() };
        let x32 = narrow(&x);
        let (y, statistics) = batch_norm::forward_train_vec(PLANES, &x32, affine).unwrap();
        let evaluated = batch_norm::forward_eval_vec(PLANES, &x32, affine, &statistics).unwrap();
        let dx = batch_norm::backward_vec(PLANES, [&x32, &g32], affine, &statistics, Source::Batch, true).unwrap();
        let found = [y, evaluated, dx.x.unwrap(), dx.weight, dx.bias, dx.slopes];
        for (index, (found, expected)) in found.iter().zip(of(&x)).enumerate() {
            assert_close(found, &expected, &format!("{activation:?}, {index}"));
        }
    }
    for activation in [Activation::Relu, Activation::Sigmoid, Activation::HardSwish] {
        let (mut y, mut y32) = (vec![0.0; 30], vec![0f32; 30]);
        activation::forward(activation, &x, &mut y).unwrap();
        activation::forward(activation, &narrow(&x), &mut y32).unwrap();
        assert_close(&y32, &y, "activation");
    }
    let (mut y, mut y32) = (vec![0.0; 30], vec![0f32; 30]);
    activation::prelu_forward(PLANES, &x, &weight, &mut y).unwrap();
    activation::prelu_forward(PLANES, &narrow(&x), &narrow(&weight), &mut y32).unwrap();
    assert_close(&y32, &y, "prelu");
    scale_channels::forward(PLANES, &x, &numbers(6, 7), &mut y).unwrap();
    scale_channels::forward(PLANES, &narrow(&x), &narrow(&numbers(6, 7)), &mut y32).unwrap();
    assert_close(&y32, &y, "scale");
    assert_close(&activation::add_vec(&narrow(&x), &narrow(&g)).unwrap(), &activation::add_vec(&x, &g).unwrap(), "sum");
}

#[test]
fn softmax_and_cross_entropy() {
    let (x, g) = (numbers(30, 1), numbers(30, 2));
    for kind in [Softmax::Probability, Softmax::Logarithm] {
        let (mut y, mut dx, mut y32, mut dx32) = (vec![0.0; 30], vec![0.0; 30], vec![0f32; 30], vec![0f32; 30]);
        activation::softmax_forward(kind, PLANES, &x, &mut y).unwrap();
        activation::softmax_backward(kind, PLANES, &y, &g, &mut dx).unwrap();
        activation::softmax_forward(kind, PLANES, &narrow(&x), &mut y32).unwrap();
        activation::softmax_backward(kind, PLANES, &y32, &narrow(&g), &mut dx32).unwrap();
        assert_close(&y32, &y, "softmax");
        assert_close(&dx32, &dx, "gradient of softmax");
    }
    let sizes = Sizes { batch: 2, classes: 3, height: 1, width: 5 };
    let labels = [0, 1, 2, 255, 1, 2, 2, 0, 255, 1];
    let weighting = Weighting { ignore_label: 255, class_weights: Some(&[1.0, 0.5, 2.0]) };
    let (wide, single) = (
        cross_entropy::forward(sizes, &x, &labels, weighting).unwrap(),
        cross_entropy::forward(sizes, &narrow(&x), &labels, weighting).unwrap(),
    );
    let (mut dx, mut dx32) = (vec![0.0; 30], vec![0f32; 30]);
    cross_entropy::backward(sizes, &x, &labels, weighting, &wide, 1.0, &mut dx).unwrap();
    cross_entropy::backward(sizes, &narrow(&x), &labels, weighting, &single, 1.0, &mut dx32).unwrap();
    assert_close(&[single.loss as f32], &[wide.loss], "cross-entropy");
    assert_close(&dx32, &dx, "gradient of cross-entropy");
}

#[test]
fn pools_sizes_and_copies() {
    let (x, planes, input) = (numbers(60, 1), 3, [4, 5]);
    let x32 = narrow(&x);
    let pool = Pool2d { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: true };
    let (y, places) = max_pool2d::max_pool2d(&x, planes, input, pool).unwrap();
    let (y32, places32) = max_pool2d::max_pool2d(&x32, planes, input, pool).unwrap();
    assert_close(&y32, &y, "maximum");
    assert_eq!(places, places32);
    let back = max_pool2d::max_pool2d_backward(&y, &places, planes, input).unwrap();
    assert_close(&max_pool2d::max_pool2d_backward(&y32, &places, planes, input).unwrap(), &back, "its gradient");
    let mean = avg_pool2d::avg_pool2d(&x, planes, input, pool, false).unwrap();
    assert_close(&avg_pool2d::avg_pool2d(&x32, planes, input, pool, false).unwrap(), &mean, "mean");
    let bins = avg_pool2d::adaptive_avg_pool2d(&x, planes, input, [3, 2]).unwrap();
    assert_close(&avg_pool2d::adaptive_avg_pool2d(&x32, planes, input, [3, 2]).unwrap(), &bins, "bins");
    for align_corners in [true, false] {
        let larger = resize::resize_bilinear(&x, planes, input, [7, 3], align_corners).unwrap();
        let own = resize::resize_bilinear(&x32, planes, input, [7, 3], align_corners).unwrap();
        assert_close(&own, &larger, "bilinear");
        let back = resize::resize_bilinear_backward(&larger, planes, input, [7, 3], align_corners).unwrap();
        let own = resize::resize_bilinear_backward(&own, planes, input, [7, 3], align_corners).unwrap();
        assert_close(&own, &back, "gradient of bilinear");
    }
    let joined = join::concat_vec(3, &[(&x, 20), (&x[..6], 2)]).unwrap();
    assert_eq!(join::part_vec(3, &joined, 0, 20).unwrap(), x);
    assert!(dsd_kernels::zeros::<f32>(7).iter().all(|zero| *zero == 0.0));
}

#[test]
fn updates() {
    let (gradient, settings) = (
        numbers(33, 1),
        optimiser::AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 },
    );
    let (mut p, mut m, mut v) = (numbers(33, 2), vec![0.0; 33], vec![0.0; 33]);
    let (mut p32, mut m32, mut v32) = (narrow(&p), vec![0f32; 33], vec![0f32; 33]);
    for step in 1..=2 {
        optimiser::adamw_step(&mut p, &gradient, &mut m, &mut v, step, settings).unwrap();
        optimiser::adamw_step(&mut p32, &narrow(&gradient), &mut m32, &mut v32, step, settings).unwrap();
    }
    assert_close(&p32, &p, "adamw");
}
