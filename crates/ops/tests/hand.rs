//! What a person can check by hand: ties, kinks, edges, ignored pixels, running statistics, and who gets a gradient.

use candle_core::{DType, Device, Tensor, Var};
use dsd_ops::{
    Activation, Conv2dOptions, ConvTranspose2dOptions, CrossEntropyOptions, PoolOptions, Result, RunningStatistics,
    adaptive_avg_pool2d, add_relu, avg_pool2d, batch_norm_eval, batch_norm_prelu_train, batch_norm_train,
    conv_transpose2d, conv2d, cross_entropy, dropout2d, hard_sigmoid, hard_swish, max_pool2d, max_pool2d_with_indices,
    max_unpool2d, prelu, relu, relu6, resize_bilinear, resize_nearest, scale_channels, sigmoid, softmax_channels,
};
use dsd_random::Stream;

use crate::inputs::{from, values};

const TYPES: [DType; 2] = [DType::F32, DType::F64];
const HALF: PoolOptions = PoolOptions { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false };
const PLAIN: Conv2dOptions =
    Conv2dOptions { stride: [1, 1], padding: [0, 0], extra_padding: [0, 0], dilation: [1, 1], groups: 1 };

fn plane(height: usize, width: usize, values: &[f64]) -> Tensor {
    Tensor::from_slice(values, (1, 1, height, width), &Device::Cpu).unwrap()
}

fn vector(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Output and gradient of Σ output with respect to x must be `y` and `gradient`, in both types, to 1e-6.
fn check(what: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>, y: &[f64], gradient: &[f64]) {
    for dtype in TYPES {
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let output = f(&x).unwrap();
        let gradients = output.sum_all().unwrap().backward().unwrap();
        let close = |got: &[f64], expected: &[f64]| {
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6)
        };
        let (got, got_gradient) = (values(&output), values(gradients.get(&x).unwrap()));
        assert!(close(&got, y), "{what} {dtype:?}: output {got:?}, expected {y:?}");
        assert!(close(&got_gradient, gradient), "{what} {dtype:?}: gradient {got_gradient:?}, expected {gradient:?}");
    }
}

#[test]
fn the_first_of_equal_maxima_gets_the_whole_gradient() {
    let pool = |options| move |x: &Tensor| max_pool2d(x, options);
    check("all equal", &plane(2, 2, &[3.0; 4]), pool(HALF), &[3.0], &[1.0, 0.0, 0.0, 0.0]);
    check("row first", &plane(2, 2, &[0.0, 5.0, 5.0, 5.0]), pool(HALF), &[5.0], &[0.0, 1.0, 0.0, 0.0]);
    check("zero and minus zero", &plane(2, 2, &[-1.0, -0.0, 0.0, -1.0]), pool(HALF), &[0.0], &[0.0, 1.0, 0.0, 0.0]);
    // The middle pixel is the maximum of all four windows; all gradients add up in it.
    let overlapping = PoolOptions { stride: [1, 1], ..HALF };
    let middle = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    check("shared", &plane(3, 3, &middle), pool(overlapping), &[1.0; 4], &middle.map(|value| 4.0 * value));
    let infinite = [f64::NEG_INFINITY; 4];
    let x = plane(2, 2, &infinite);
    let (y, indices) = max_pool2d_with_indices(&x, HALF).unwrap();
    assert_eq!((values(&y), values(&indices)), (vec![f64::NEG_INFINITY], vec![0.0]), "a window of minus infinities");
}

#[test]
fn indices_count_within_the_input_plane_and_unpooling_puts_values_there() {
    let x = plane(3, 5, &[0.0, 1.0, 2.0, 9.0, 4.0, 5.0, 6.0, 7.0, 8.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    for dtype in TYPES {
        let (y, indices) = max_pool2d_with_indices(&x.to_dtype(dtype).unwrap(), HALF).unwrap();
        assert_eq!((indices.dtype(), indices.dims()), (DType::U32, &[1, 1, 1, 2][..]));
        assert_eq!((values(&y), values(&indices)), (vec![6.0, 9.0], vec![6.0, 3.0]));
        let mut expected = vec![0.0; 15];
        (expected[6], expected[3]) = (6.0, 9.0);
        assert_eq!(values(&max_unpool2d(&y, &indices, [3, 5]).unwrap()), expected);
        assert!(max_unpool2d(&y, &indices, [2, 3]).is_err(), "index 6 is outside of 2x3");
    }
}

#[test]
fn kinks_have_pytorchs_derivative() {
    let x = plane(1, 6, &[-1.0, -0.0, 0.0, 2.0, 6.0, 7.0]);
    check("relu", &x, relu, &[0.0, 0.0, 0.0, 2.0, 6.0, 7.0], &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    check("relu6", &x, relu6, &[0.0, 0.0, 0.0, 2.0, 6.0, 6.0], &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    let swish = plane(1, 6, &[-4.0, -3.0, 0.0, 1.5, 3.0, 4.0]);
    check("hard_swish", &swish, hard_swish, &[0.0, 0.0, 0.0, 1.125, 3.0, 4.0], &[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]);
    let sixth = 1.0 / 6.0;
    check("hard_sigmoid", &swish, hard_sigmoid, &[0.0, 0.0, 0.5, 0.75, 1.0, 1.0], &[0.0, 0.0, sixth, sixth, 0.0, 0.0]);
    let plus_one = |x: &Tensor| add_relu(x, &(x.zeros_like()? + 1.0)?);
    check("add_relu", &x, plus_one, &[0.0, 1.0, 1.0, 3.0, 7.0, 8.0], &[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let leaky = |x: &Tensor| prelu(x, &vector(&[0.25]).to_dtype(x.dtype())?);
    check("prelu", &x, leaky, &[-0.25, 0.0, 0.0, 2.0, 6.0, 7.0], &[0.25, 0.25, 0.25, 1.0, 1.0, 1.0]);
}

#[test]
fn nan_is_not_hidden() {
    let x = plane(2, 2, &[1.0, f64::NAN, 3.0, 4.0]);
    for dtype in TYPES {
        let x = x.to_dtype(dtype).unwrap();
        let nan = |y: Result<Tensor>, what: &str| {
            assert!(values(&y.unwrap()).iter().any(|y| y.is_nan()), "{what} {dtype:?} hides a NaN");
        };
        nan(max_pool2d(&x, HALF), "max_pool2d");
        nan(relu(&x), "relu");
        nan(relu6(&x), "relu6");
        nan(hard_swish(&x), "hard_swish");
        nan(hard_sigmoid(&x), "hard_sigmoid");
        nan(sigmoid(&x), "sigmoid");
        nan(add_relu(&x, &x), "add_relu");
        nan(softmax_channels(&x), "softmax_channels");
        nan(resize_bilinear(&x, [3, 3], true), "resize_bilinear");
        let one = vector(&[1.0]).to_dtype(dtype).unwrap();
        nan(prelu(&x, &one), "prelu");
        nan(batch_norm_prelu_train(&x, &one, &one, &one, None, 1e-5), "batch_norm_prelu_train");
        for activation in [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish] {
            nan(batch_norm_train(&x, &one, &one, None, 1e-5, activation), "batch_norm_train");
            nan(batch_norm_eval(&x, &one, &one, &one, &one, 1e-5, activation), "batch_norm_eval");
        }
    }
}

#[test]
fn averages_count_what_they_say() {
    let x = plane(1, 5, &[1.0, 2.0, 3.0, 4.0, 5.0]);
    let bins = |x: &Tensor| adaptive_avg_pool2d(x, [1, 3]);
    // Bins 0..2, 1..4, 3..5: the second and fourth pixel count twice.
    let (half, third) = (0.5, 1.0 / 3.0);
    check("bins overlap", &x, bins, &[1.5, 3.0, 4.5], &[half, half + third, third, third + half, half]);

    let wide = PoolOptions { kernel: [1, 3], stride: [1, 2], padding: [0, 1], ceil_mode: false };
    let counted = |x: &Tensor| avg_pool2d(x, wide, true);
    check("padding counted", &x, counted, &[1.0, 3.0, 3.0], &[third, 2.0 * third, third, 2.0 * third, third]);
    let not_counted = |x: &Tensor| avg_pool2d(x, wide, false);
    check("padding not counted", &x, not_counted, &[1.5, 3.0, 4.5], &[half, half + third, third, third + half, half]);
}

#[test]
fn resizes_put_pixels_where_pytorch_does() {
    let x = plane(1, 2, &[0.0, 3.0]);
    let centres = |x: &Tensor| resize_bilinear(x, [1, 4], false);
    let corners = |x: &Tensor| resize_bilinear(x, [1, 4], true);
    let nearest = |x: &Tensor| resize_nearest(x, [2, 3]);
    check("pixel centres", &x, centres, &[0.0, 0.75, 2.25, 3.0], &[2.0, 2.0]);
    check("corners", &x, corners, &[0.0, 1.0, 2.0, 3.0], &[2.0, 2.0]);
    check("nearest", &x, nearest, &[0.0, 0.0, 3.0, 0.0, 0.0, 3.0], &[4.0, 2.0]);
}

#[test]
fn convolution_is_a_correlation() {
    let x = plane(1, 3, &[1.0, 2.0, 4.0]);
    let weight = plane(1, 2, &[10.0, 1.0]);
    let correlate = |x: &Tensor| conv2d(x, &weight.to_dtype(x.dtype())?, None, PLAIN);
    check("conv2d", &x, correlate, &[12.0, 24.0], &[10.0, 11.0, 1.0]);
    let options =
        ConvTranspose2dOptions { stride: [1, 2], padding: [0, 0], output_padding: [0, 0], dilation: [1, 1], groups: 1 };
    let spread = |x: &Tensor| conv_transpose2d(x, &weight.to_dtype(x.dtype())?, None, options);
    check("conv_transpose2d", &x, spread, &[10.0, 1.0, 20.0, 2.0, 40.0, 4.0], &[11.0, 11.0, 11.0]);
}

#[test]
fn batch_norm_normalises_and_moves_the_running_statistics() {
    for dtype in TYPES {
        let cast = |tensor: Tensor| tensor.to_dtype(dtype).unwrap();
        let x = cast(plane(1, 2, &[1.0, 3.0]));
        let (weight, bias) = (cast(vector(&[2.0])), cast(vector(&[10.0])));
        let (mean, var) = (cast(vector(&[1.0])), cast(vector(&[1.0])));
        let running = RunningStatistics { mean: &mean, var: &var, momentum: 0.1 };
        // Mean 2, biased variance 1: ±1 → ±2 + 10. The running variance takes the unbiased one, 2.
        let y = values(&batch_norm_train(&x, &weight, &bias, Some(running), 1e-12, Activation::Identity).unwrap());
        assert!((y[0] - 8.0).abs() < 1e-5 && (y[1] - 12.0).abs() < 1e-5, "{y:?}");
        let (mean, var) = (values(&mean)[0], values(&var)[0]);
        assert!((mean - 1.1).abs() < 1e-6 && (var - 1.1).abs() < 1e-6, "mean {mean}, variance {var}");
    }
}

#[test]
fn batch_norm_of_one_value_per_channel_is_its_bias() {
    for dtype in TYPES {
        let cast = |tensor: Tensor| tensor.to_dtype(dtype).unwrap();
        let x = Var::from_tensor(&cast(from(&[1, 2, 1, 1], |c| 5.0 + c as f64))).unwrap();
        let weight = Var::from_tensor(&cast(vector(&[3.0, 3.0]))).unwrap();
        let bias = Var::from_tensor(&cast(vector(&[-1.0, 0.5]))).unwrap();
        let (mean, var) = (cast(vector(&[0.0, 0.0])), cast(vector(&[1.0, 2.0])));
        let running = RunningStatistics { mean: &mean, var: &var, momentum: 0.1 };
        let y = batch_norm_train(&x, &weight, &bias, Some(running), 1e-5, Activation::Relu).unwrap();
        assert_eq!(values(&y), [0.0, 0.5]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let of = |variable: &Var| values(gradients.get(variable).unwrap());
        assert_eq!((of(&x), of(&weight), of(&bias)), (vec![0.0; 2], vec![0.0; 2], vec![0.0, 1.0]));
        assert_eq!(values(&var), [1.0, 2.0], "an unbiased variance of one value does not exist");
        assert!((values(&mean)[0] - 0.5).abs() < 1e-6 && (values(&mean)[1] - 0.6).abs() < 1e-6);
    }
}

#[test]
fn dropout2d_drops_whole_planes_and_keeps_the_mean() {
    let ones = from(&[40, 50, 2, 3], |_| 1.0);
    for dtype in TYPES {
        let ones = ones.to_dtype(dtype).unwrap();
        let draw = |seed| dropout2d(&ones, 0.2, &mut Stream::new(seed, "dropout", 0, 0)).unwrap();
        let y = values(&draw(1));
        let planes: Vec<&[f64]> = y.chunks_exact(6).collect();
        assert!(planes.iter().all(|plane| plane.iter().all(|value| value == &plane[0])));
        assert!(y.iter().all(|&value| value == 0.0 || (value - 1.25).abs() < 1e-6));
        let dropped = planes.iter().filter(|plane| plane[0] == 0.0).count();
        // 2000 planes: 400 expected, standard deviation 18.
        assert!((310..490).contains(&dropped), "{dropped} of 2000 planes dropped");
        assert_eq!(y, values(&draw(1)), "the same stream gives the same mask");
        assert_ne!(y, values(&draw(2)));
    }
}

#[test]
fn cross_entropy_counts_only_labelled_pixels() {
    let options = CrossEntropyOptions { ignore_label: 255, class_weights: None };
    let label = |ids: &[u8]| Tensor::from_slice(ids, (1, 1, ids.len()), &Device::Cpu).unwrap();
    let logits = from(&[1, 4, 1, 2], |_| 7.0);
    let loss = |labels: Tensor| move |x: &Tensor| cross_entropy(x, &labels, options);
    // Uniform logits: ln 4, and (1/4 − [own class]) per counted pixel, divided by their number.
    let [all, one] = [0.125, 0.25];
    let both = [all, all - 0.5, all, all, all, all, all - 0.5, all];
    check("both", &logits, loss(label(&[0, 3])), &[4f64.ln()], &[all - 0.5, all, all, all, all, all, all, all - 0.5]);
    check(
        "classes are the second axis",
        &logits,
        loss(label(&[3, 0])),
        &[4f64.ln()],
        &[all, all - 0.5, all, all, all, all, all - 0.5, all],
    );
    assert_eq!(both.len(), 8);
    check(
        "one ignored",
        &logits,
        loss(label(&[1, 255])),
        &[4f64.ln()],
        &[one, 0.0, one - 1.0, 0.0, one, 0.0, one, 0.0],
    );
    check("all ignored", &logits, loss(label(&[255, 255])), &[0.0], &[0.0; 8]);
    let weighted = |x: &Tensor| {
        cross_entropy(
            x,
            &label(&[0, 1]),
            CrossEntropyOptions { ignore_label: 255, class_weights: Some(&[3.0, 1.0, 1.0, 1.0]) },
        )
    };
    let (heavy, light) = (0.75 * 0.25, 0.25 * 0.25);
    let gradient = [heavy - 0.75, light, heavy, light - 0.25, heavy, light, heavy, light];
    check("weighted mean", &logits, weighted, &[4f64.ln()], &gradient);
    let none = |x: &Tensor| {
        cross_entropy(
            x,
            &label(&[0, 0]),
            CrossEntropyOptions { ignore_label: 255, class_weights: Some(&[0.0, 1.0, 1.0, 1.0]) },
        )
    };
    check("total weight zero", &logits, none, &[0.0], &[0.0; 8]);

    for dtype in TYPES {
        let message =
            cross_entropy(&logits.to_dtype(dtype).unwrap(), &label(&[1, 4]), options).unwrap_err().to_string();
        assert!(message.starts_with("cross_entropy: labels is 4 "), "{message}");
    }
}

#[test]
fn constants_get_no_gradient_and_no_graph() {
    let x = from(&[1, 2, 4, 4], |index| index as f64 * 0.1);
    let weight = from(&[3, 2, 3, 3], |index| index as f64 * 0.01);
    assert!(!conv2d(&x, &weight, None, PLAIN).unwrap().track_op(), "a graph without variables");
    let weight = Var::from_tensor(&weight).unwrap();
    let y = conv2d(&x, &weight, None, PLAIN).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&weight).is_some());
    assert!(gradients.get(&x).is_none(), "time was spent on the gradient of the image");
    assert!(!gradients.get(&weight).unwrap().track_op(), "a gradient that holds its graph");
}

#[test]
fn wrong_arguments_are_errors_that_name_the_operation() {
    let x = from(&[1, 4, 5, 6], |_| 1.0);
    let flat = from(&[4, 5], |_| 1.0);
    let bytes = x.to_dtype(DType::U8).unwrap();
    let weight = from(&[2, 3, 3, 3], |_| 1.0);
    let good = from(&[2, 4, 3, 3], |_| 1.0);
    let labels = Tensor::zeros((1, 5, 5), DType::U8, &Device::Cpu).unwrap();
    let options = CrossEntropyOptions { ignore_label: 255, class_weights: None };
    let transpose =
        ConvTranspose2dOptions { stride: [1, 1], padding: [0, 0], output_padding: [0, 0], dilation: [1, 1], groups: 1 };
    let four = vector(&[1.0; 4]);
    let three = vector(&[1.0; 3]);
    let norm = |x: &Tensor, weight: &Tensor, eps| batch_norm_train(x, weight, &four, None, eps, Activation::Identity);
    let mut stream = Stream::new(0, "dropout", 0, 0);
    let calls: Vec<(&str, Result<Tensor>)> = vec![
        ("conv2d: channels", conv2d(&x, &weight, None, PLAIN)),
        ("conv2d: rank", conv2d(&flat, &good, None, PLAIN)),
        ("conv2d: type", conv2d(&bytes, &good, None, PLAIN)),
        ("conv2d: types differ", conv2d(&x, &good.to_dtype(DType::F32).unwrap(), None, PLAIN)),
        ("conv2d: bias", conv2d(&x, &good, Some(&three), PLAIN)),
        ("conv2d: stride 0", conv2d(&x, &good, None, Conv2dOptions { stride: [0, 1], ..PLAIN })),
        ("conv2d: dilation 0", conv2d(&x, &good, None, Conv2dOptions { dilation: [1, 0], ..PLAIN })),
        ("conv2d: groups 0", conv2d(&x, &good, None, Conv2dOptions { groups: 0, ..PLAIN })),
        ("conv2d: groups 3", conv2d(&x, &good, None, Conv2dOptions { groups: 3, ..PLAIN })),
        ("conv2d: kernel larger than the image", conv2d(&x, &good, None, Conv2dOptions { dilation: [3, 3], ..PLAIN })),
        ("conv_transpose2d: channels", conv_transpose2d(&x, &weight, None, transpose)),
        (
            "conv_transpose2d: stride 0",
            conv_transpose2d(
                &x,
                &from(&[4, 2, 3, 3], |_| 1.0),
                None,
                ConvTranspose2dOptions { stride: [0, 1], ..transpose },
            ),
        ),
        (
            "conv_transpose2d: output padding",
            conv_transpose2d(
                &x,
                &from(&[4, 2, 3, 3], |_| 1.0),
                None,
                ConvTranspose2dOptions { output_padding: [1, 1], ..transpose },
            ),
        ),
        ("max_pool2d: rank", max_pool2d(&flat, HALF)),
        ("max_pool2d: stride 0", max_pool2d(&x, PoolOptions { stride: [0, 2], ..HALF })),
        ("max_pool2d: kernel 0", max_pool2d(&x, PoolOptions { kernel: [2, 0], ..HALF })),
        ("max_pool2d: padding above half the kernel", max_pool2d(&x, PoolOptions { padding: [2, 0], ..HALF })),
        ("max_pool2d: kernel larger than the image", max_pool2d(&x, PoolOptions { kernel: [6, 6], ..HALF })),
        ("max_unpool2d: indices", max_unpool2d(&x, &labels, [8, 8])),
        ("avg_pool2d: padding above half the kernel", avg_pool2d(&x, PoolOptions { padding: [0, 2], ..HALF }, true)),
        ("adaptive_avg_pool2d: size 0", adaptive_avg_pool2d(&x, [0, 1])),
        ("resize_bilinear: size 0", resize_bilinear(&x, [3, 0], true)),
        ("resize_nearest: size 0", resize_nearest(&x, [0, 3])),
        ("batch_norm_train: rank", norm(&flat, &four, 1e-5)),
        ("batch_norm_train: weight", norm(&x, &three, 1e-5)),
        ("batch_norm_train: negative eps", norm(&x, &four, -1.0)),
        ("batch_norm_prelu_train: slopes", batch_norm_prelu_train(&x, &four, &four, &three, None, 1e-5)),
        ("batch_norm_eval: mean", batch_norm_eval(&x, &four, &four, &three, &four, 1e-5, Activation::Identity)),
        ("relu: type", relu(&bytes)),
        ("hard_swish: type", hard_swish(&bytes)),
        ("add_relu: shape", add_relu(&x, &good)),
        ("scale_channels: shape", scale_channels(&x, &four)),
        ("prelu: weight", prelu(&x, &three)),
        ("dropout2d: probability 1.5", dropout2d(&x, 1.5, &mut stream)),
        ("dropout2d: probability NaN", dropout2d(&x, f64::NAN, &mut stream)),
        ("softmax_channels: rank", softmax_channels(&four)),
        ("cross_entropy: labels of another size", cross_entropy(&x, &labels, options)),
        ("cross_entropy: labels as floats", cross_entropy(&x, &from(&[1, 5, 6], |_| 1.0), options)),
        (
            "cross_entropy: weights",
            cross_entropy(
                &x,
                &Tensor::zeros((1, 5, 6), DType::U8, &Device::Cpu).unwrap(),
                CrossEntropyOptions { ignore_label: 255, class_weights: Some(&[1.0]) },
            ),
        ),
    ];
    let mut failures = Vec::new();
    for (what, result) in calls {
        let op = what.split(':').next().unwrap();
        match result {
            Ok(y) => failures.push(format!("{what}: no error, output {:?}", y.dims())),
            Err(error) if error.to_string().starts_with(op) => {}
            Err(error) => failures.push(format!("{what}: the message does not begin with the operation: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
