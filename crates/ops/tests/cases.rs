//! Calls large enough for the fast f32 kernels, one for each way the kernels go, shared by the tests that compare two
//! ways of running the same call.

use candle_core::{DType, Result, Tensor, Var};
use dsd_ops::{
    Activation, Conv2dOptions, ConvTranspose2dOptions, CrossEntropyOptions, PoolOptions, RunningStatistics,
    adaptive_avg_pool2d, add_relu, avg_pool2d, batch_norm_eval, batch_norm_prelu_eval, batch_norm_prelu_train,
    batch_norm_train, conv_transpose2d, conv2d, cross_entropy, dropout2d, hard_sigmoid, hard_swish,
    log_softmax_channels, max_pool2d, max_pool2d_with_indices, max_unpool2d, prelu, relu, relu6, resize_bilinear,
    resize_nearest, scale_channels, sigmoid, softmax_channels,
};
use dsd_random::Stream;

use crate::inputs::{distinct, from, labels, normal};

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

pub(crate) struct Case {
    pub(crate) name: String,
    /// f64 tensors whose values are exact in f32.
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) function: Function,
    /// What f32 may differ from f64, as a fraction of the largest element of the tensor.
    pub(crate) of_largest: f64,
}

/// Differences by rounding of sums of some hundred products; F(4,3) Winograd transforms lose up to one digit more.
const SUMS: f64 = 3e-6;
const WINOGRAD: f64 = 3e-5;

struct Cases(Vec<Case>);

impl Cases {
    fn add(
        &mut self,
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        of_largest: f64,
        function: impl Fn(&[Tensor]) -> dsd_ops::Result<Tensor> + Send + Sync + 'static,
    ) {
        let exact = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_dtype(DType::F64).unwrap();
        let function = Box::new(move |tensors: &[Tensor]| Ok(function(tensors)?));
        self.0.push(Case { name: name.into(), inputs: inputs.iter().map(exact).collect(), function, of_largest });
    }
}

/// The output and the gradient of every input of Σ g·output, for a cotangent g that is a function of the output's shape.
pub(crate) fn forward_and_backward(
    inputs: &[Tensor],
    function: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let output = function(&tensors)?;
    let cotangent = normal(99, output.dims()).to_dtype(DType::F32)?.to_dtype(output.dtype())?;
    let gradients = (&output * cotangent)?.sum_all()?.backward()?;
    let mut results = vec![output.detach()];
    for variable in &variables {
        results.push(gradients.get(variable).cloned().unwrap_or(variable.zeros_like()?));
    }
    Ok(results)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    convolutions(&mut cases);
    poolings_and_resizes(&mut cases);
    pixelwise(&mut cases);
    cases.0
}

/// What, the sizes of x and weight, the options, and the allowed difference.
type Convolution<Options> = (&'static str, [usize; 4], [usize; 4], Options, f64);

fn convolutions(cases: &mut Cases) {
    let plain = Conv2dOptions { stride: [1, 1], padding: [0, 0], extra_padding: [0, 0], dilation: [1, 1], groups: 1 };
    let same = Conv2dOptions { padding: [1, 1], ..plain };
    let half = Conv2dOptions { stride: [2, 2], ..same };
    let dilated = |d: usize| Conv2dOptions { padding: [d, d], dilation: [d, d], ..plain };
    let after = Conv2dOptions { stride: [2, 2], extra_padding: [1, 1], ..plain };
    let list: [Convolution<Conv2dOptions>; 31] = [
        ("3x3, 16 to 16 channels", [2, 16, 13, 19], [16, 16, 3, 3], same, WINOGRAD),
        ("3x3, 40 to 24 channels", [1, 40, 17, 9], [24, 40, 3, 3], same, WINOGRAD),
        ("3x3, 17 to 33 channels, wide", [1, 17, 7, 70], [33, 17, 3, 3], same, WINOGRAD),
        ("3x3, 64 to 64 channels, three images", [3, 64, 12, 12], [64, 64, 3, 3], same, WINOGRAD),
        ("3x3 without padding", [1, 16, 12, 15], [20, 16, 3, 3], plain, WINOGRAD),
        ("3x3 on a small map", [2, 32, 4, 3], [16, 32, 3, 3], same, WINOGRAD),
        ("3x3 on one pixel", [4, 16, 1, 1], [16, 16, 3, 3], same, WINOGRAD),
        ("3x3 to one channel", [1, 32, 10, 11], [1, 32, 3, 3], same, WINOGRAD),
        ("3x3 from the colours", [2, 3, 20, 21], [16, 3, 3, 3], same, WINOGRAD),
        ("3x3, 8 to 8 channels", [2, 8, 16, 17], [8, 8, 3, 3], same, WINOGRAD),
        ("3x3 dilation 2", [1, 16, 14, 17], [16, 16, 3, 3], dilated(2), WINOGRAD),
        ("3x3 dilation 4 on a small map", [2, 24, 9, 7], [16, 24, 3, 3], dilated(4), WINOGRAD),
        ("3x3 stride 2", [2, 16, 15, 20], [32, 16, 3, 3], half, SUMS),
        ("3x3 stride 2 from the colours", [1, 3, 32, 31], [16, 3, 3, 3], half, SUMS),
        (
            "7x7 stride 2",
            [2, 3, 33, 28],
            [16, 3, 7, 7],
            Conv2dOptions { stride: [2, 2], padding: [3, 3], ..plain },
            SUMS,
        ),
        ("1x1", [2, 24, 15, 11], [40, 24, 1, 1], plain, SUMS),
        ("1x1, many channels on a small map", [2, 80, 6, 5], [64, 80, 1, 1], plain, SUMS),
        ("1x1 stride 2", [2, 32, 15, 12], [16, 32, 1, 1], Conv2dOptions { stride: [2, 2], ..plain }, SUMS),
        ("5x1", [1, 16, 14, 13], [16, 16, 5, 1], Conv2dOptions { padding: [2, 0], ..plain }, SUMS),
        ("1x5", [1, 16, 14, 13], [16, 16, 1, 5], Conv2dOptions { padding: [0, 2], ..plain }, SUMS),
        ("2x2 stride 2", [1, 16, 14, 13], [16, 16, 2, 2], Conv2dOptions { stride: [2, 2], ..plain }, SUMS),
        ("3x3, 4 groups", [2, 32, 9, 10], [32, 8, 3, 3], Conv2dOptions { groups: 4, ..same }, WINOGRAD),
        ("depthwise", [2, 19, 14, 37], [19, 1, 3, 3], Conv2dOptions { groups: 19, ..same }, SUMS),
        ("depthwise stride 2", [2, 19, 15, 36], [19, 1, 3, 3], Conv2dOptions { groups: 19, ..half }, SUMS),
        ("depthwise dilation 3", [2, 16, 14, 17], [16, 1, 3, 3], Conv2dOptions { groups: 16, ..dilated(3) }, SUMS),
        ("depthwise 5x5", [1, 16, 14, 17], [16, 1, 5, 5], Conv2dOptions { padding: [2, 2], groups: 16, ..plain }, SUMS),
        ("depthwise with multiplier", [1, 8, 9, 17], [16, 1, 3, 3], Conv2dOptions { groups: 8, ..same }, SUMS),
        ("SAME 3x3 stride 2", [2, 16, 14, 20], [24, 16, 3, 3], after, SUMS),
        ("SAME 3x3 stride 2 from the colours", [1, 3, 32, 30], [16, 3, 3, 3], after, SUMS),
        (
            "SAME depthwise 5x5",
            [2, 19, 14, 36],
            [19, 1, 5, 5],
            Conv2dOptions { padding: [1, 1], groups: 19, ..after },
            SUMS,
        ),
        ("SAME depthwise 3x3 stride 2", [2, 19, 14, 36], [19, 1, 3, 3], Conv2dOptions { groups: 19, ..after }, SUMS),
    ];
    for (what, x, weight, options, of_largest) in list {
        let inputs = vec![normal(1, &x), normal(2, &weight), normal(3, &weight[..1])];
        cases.add(format!("conv2d, {what}"), inputs, of_largest, move |t| conv2d(&t[0], &t[1], Some(&t[2]), options));
    }
    // After a ReLU the inputs are not centred, which is where Winograd loses most.
    let positive = vec![normal(4, &[2, 32, 13, 14]).abs().unwrap(), normal(5, &[32, 32, 3, 3]), normal(6, &[32])];
    cases.add("conv2d, 3x3 after a ReLU", positive, WINOGRAD, move |t| conv2d(&t[0], &t[1], Some(&t[2]), same));

    let inputs = vec![normal(10, &[1, 16, 13, 14]), normal(11, &[24, 16, 3, 3])];
    cases.add("conv2d, 3x3 without bias", inputs.clone(), WINOGRAD, move |t| conv2d(&t[0], &t[1], None, same));
    cases.add("conv2d, 3x3 stride 2 without bias", inputs, SUMS, move |t| conv2d(&t[0], &t[1], None, half));

    let plain =
        ConvTranspose2dOptions { stride: [1, 1], padding: [0, 0], output_padding: [0, 0], dilation: [1, 1], groups: 1 };
    let double = ConvTranspose2dOptions { stride: [2, 2], padding: [1, 1], output_padding: [1, 1], ..plain };
    let list: [Convolution<ConvTranspose2dOptions>; 5] = [
        ("3x3 stride 2", [2, 16, 9, 12], [16, 24, 3, 3], double, SUMS),
        ("3x3 stride 1", [1, 16, 9, 12], [16, 16, 3, 3], ConvTranspose2dOptions { padding: [1, 1], ..plain }, WINOGRAD),
        ("2x2 stride 2", [2, 24, 9, 7], [24, 11, 2, 2], ConvTranspose2dOptions { stride: [2, 2], ..plain }, SUMS),
        ("4 groups", [1, 16, 7, 9], [16, 4, 3, 3], ConvTranspose2dOptions { groups: 4, ..double }, SUMS),
        ("depthwise", [2, 16, 7, 9], [16, 1, 3, 3], ConvTranspose2dOptions { groups: 16, ..double }, SUMS),
    ];
    for (what, x, weight, options, of_largest) in list {
        let inputs = vec![normal(7, &x), normal(8, &weight), normal(9, &[weight[1] * options.groups])];
        let call = move |t: &[Tensor]| conv_transpose2d(&t[0], &t[1], Some(&t[2]), options);
        cases.add(format!("conv_transpose2d, {what}"), inputs, of_largest, call);
    }
    let inputs = vec![normal(12, &[1, 16, 7, 9]), normal(13, &[16, 8, 3, 3])];
    cases.add("conv_transpose2d, without bias", inputs, SUMS, move |t| conv_transpose2d(&t[0], &t[1], None, double));
}

fn poolings_and_resizes(cases: &mut Cases) {
    let half = PoolOptions { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false };
    let stem = PoolOptions { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let ceil = PoolOptions { ceil_mode: true, ..stem };
    for (what, options) in [("2x2", half), ("3x3 stride 2", stem), ("3x3 stride 2, ceil", ceil)] {
        let x = vec![distinct(11, &[2, 5, 24, 35])];
        cases.add(format!("max_pool2d, {what}"), x, SUMS, move |t| max_pool2d(&t[0], options));
        let x = vec![normal(12, &[2, 5, 24, 35])];
        cases.add(format!("avg_pool2d, {what}"), x, SUMS, move |t| avg_pool2d(&t[0], options, false));
    }
    let (pooled, indices) = max_pool2d_with_indices(&distinct(13, &[2, 5, 24, 35]), half).unwrap();
    cases.add("max_unpool2d", vec![normal(14, pooled.dims())], 0.0, move |t| max_unpool2d(&t[0], &indices, [24, 35]));
    for bins in [1, 2, 3, 6] {
        let x = vec![normal(15, &[2, 16, 23, 32])];
        cases.add(format!("adaptive_avg_pool2d, {bins} bins"), x, SUMS, move |t| {
            adaptive_avg_pool2d(&t[0], [bins, bins])
        });
    }
    let sizes = [
        ("up by 8", [2, 5, 8, 9], [64, 72]),
        ("up by fractions", [2, 5, 13, 9], [29, 40]),
        ("down", [1, 5, 40, 33], [17, 20]),
    ];
    for (what, x, size) in sizes {
        for corners in [false, true] {
            let name = format!("resize_bilinear, {what}, align_corners {corners}");
            cases.add(name, vec![normal(16, &x)], 1e-5, move |t| resize_bilinear(&t[0], size, corners));
        }
        cases.add(format!("resize_nearest, {what}"), vec![normal(17, &x)], SUMS, move |t| resize_nearest(&t[0], size));
    }
    cases.add("resize_bilinear, from one pixel", vec![normal(18, &[2, 40, 1, 1])], SUMS, |t| {
        resize_bilinear(&t[0], [20, 24], true)
    });
}

fn pixelwise(cases: &mut Cases) {
    let activations = [
        ("identity", Activation::Identity),
        ("relu", Activation::Relu),
        ("relu6", Activation::Relu6),
        ("hard swish", Activation::HardSwish),
    ];
    let statistics = |channels: usize, dtype: DType| {
        let mean = from(&[channels], |c| 0.5 - 0.25 * c as f64).to_dtype(dtype).unwrap();
        (mean, from(&[channels], |c| 1.5 + 0.25 * c as f64).to_dtype(dtype).unwrap())
    };
    for (name, activation) in activations {
        for (what, shape) in [("4x9x24x21", [4, 9, 24, 21]), ("1x17x5x3", [1, 17, 5, 3]), ("8x16x1x1", [8, 16, 1, 1])] {
            let channels = [shape[1]];
            let bias = (normal(23, &channels) + 2.0).unwrap();
            let inputs = vec![normal(21, &shape), (normal(22, &channels) * 3.0).unwrap(), bias];
            cases.add(format!("batch_norm_train, {what}, {name}"), inputs.clone(), SUMS, move |t| {
                let (mean, var) = statistics(t[1].elem_count(), t[0].dtype());
                let running = RunningStatistics { mean: &mean, var: &var, momentum: 0.1 };
                batch_norm_train(&t[0], &t[1], &t[2], Some(running), 1e-5, activation)
            });
            cases.add(format!("batch_norm_eval, {what}, {name}"), inputs, SUMS, move |t| {
                let (mean, var) = statistics(t[1].elem_count(), t[0].dtype());
                batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, 1e-5, activation)
            });
        }
    }
    for (what, shape) in [("4x9x24x21", [4, 9, 24, 21]), ("1x17x5x3", [1, 17, 5, 3])] {
        let channels = [shape[1]];
        let inputs = vec![normal(35, &shape), normal(36, &channels), normal(37, &channels), normal(38, &channels)];
        cases.add(format!("batch_norm_prelu_train, {what}"), inputs.clone(), SUMS, |t| {
            batch_norm_prelu_train(&t[0], &t[1], &t[2], &t[3], None, 1e-5)
        });
        cases.add(format!("batch_norm_prelu_eval, {what}"), inputs, SUMS, move |t| {
            let (mean, var) = statistics(t[1].elem_count(), t[0].dtype());
            batch_norm_prelu_eval(&t[0], &t[1], &t[2], &t[3], &mean, &var, 1e-5)
        });
    }
    // Sums of squares would lose all digits of the variance here.
    let far = vec![(normal(24, &[2, 3, 20, 21]) + 1000.0).unwrap(), normal(25, &[3]), normal(26, &[3])];
    cases.add("batch_norm_train, mean 1000 and deviation 1", far, 1e-4, |t| {
        batch_norm_train(&t[0], &t[1], &t[2], None, 1e-5, Activation::Identity)
    });

    let x = || (normal(27, &[2, 5, 21, 23]) * 4.0).unwrap();
    cases.add("relu", vec![x()], 0.0, |t| relu(&t[0]));
    cases.add("relu6", vec![x()], 0.0, |t| relu6(&t[0]));
    cases.add("hard_swish", vec![x()], SUMS, |t| hard_swish(&t[0]));
    cases.add("hard_sigmoid", vec![x()], SUMS, |t| hard_sigmoid(&t[0]));
    cases.add("sigmoid", vec![x()], SUMS, |t| sigmoid(&t[0]));
    cases.add("add_relu", vec![x(), normal(33, &[2, 5, 21, 23])], SUMS, |t| add_relu(&t[0], &t[1]));
    cases.add("scale_channels", vec![x(), normal(34, &[2, 5, 1, 1])], SUMS, |t| scale_channels(&t[0], &t[1]));
    cases.add("prelu, per channel", vec![x(), normal(28, &[5])], SUMS, |t| prelu(&t[0], &t[1]));
    cases.add("prelu, one weight", vec![x(), normal(29, &[1])], SUMS, |t| prelu(&t[0], &t[1]));
    cases.add("dropout2d", vec![x()], SUMS, |t| dropout2d(&t[0], 0.4, &mut Stream::new(1, "dropout", 0, 0)));
    cases.add("softmax_channels", vec![normal(30, &[2, 19, 13, 21])], SUMS, |t| softmax_channels(&t[0]));
    cases.add("log_softmax_channels", vec![normal(30, &[2, 19, 13, 21])], SUMS, |t| log_softmax_channels(&t[0]));
    let weights: Vec<f64> = (0..19).map(|class| 0.5 + 0.1 * f64::from(class)).collect();
    for (what, class_weights, ignored) in
        [("plain", None, 0.0), ("ignored", None, 0.3), ("weights", Some(weights), 0.3)]
    {
        let labels = labels(31, &[2, 33, 41], 19, ignored, 255);
        let logits = vec![(normal(32, &[2, 19, 33, 41]) * 3.0).unwrap()];
        cases.add(format!("cross_entropy, {what}"), logits, SUMS, move |t| {
            let options = CrossEntropyOptions { ignore_label: 255, class_weights: class_weights.as_deref() };
            cross_entropy(&t[0], &labels, options)
        });
    }
}
