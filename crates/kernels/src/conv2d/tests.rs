//! Every algorithm against the plain formula in f64.

use dsd_random::Stream;

use super::*;
use crate::fresh::uninit;
use crate::lanes::Instructions;

/// The largest error of an f32 pass, relative to the largest value.
const TOLERANCE: f64 = 3e-6;

struct Setting {
    input: [usize; 4],
    out_channels: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    extra_padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

impl Setting {
    fn shape(&self) -> Conv2dShape {
        let [batch, in_channels, in_height, in_width] = self.input;
        let &Self { out_channels, kernel, stride, padding, extra_padding, dilation, groups, .. } = self;
        Conv2dShape {
            batch,
            in_channels,
            in_height,
            in_width,
            out_channels,
            kernel,
            stride,
            padding,
            extra_padding,
            dilation,
            groups,
        }
    }
}

const fn setting(
    input: [usize; 4],
    out_channels: usize,
    kernel: [usize; 2],
    [stride, padding, dilation]: [[usize; 2]; 3],
    groups: usize,
) -> Setting {
    Setting { input, out_channels, kernel, stride, padding, extra_padding: [0, 0], dilation, groups }
}

const SETTINGS: [Setting; 45] = [
    setting([1, 1, 1, 1], 1, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 3, 7, 9], 5, [3, 3], [[1, 1], [1, 1], [1, 1]], 1),
    setting([1, 3, 23, 31], 17, [7, 7], [[2, 2], [3, 3], [1, 1]], 1),
    setting([2, 17, 13, 19], 7, [3, 3], [[2, 2], [1, 1], [1, 1]], 1),
    setting([2, 17, 12, 18], 7, [3, 3], [[2, 2], [1, 1], [1, 1]], 1),
    setting([2, 5, 14, 11], 9, [3, 3], [[3, 3], [0, 2], [1, 1]], 1),
    setting([1, 4, 16, 15], 6, [3, 3], [[1, 1], [2, 2], [2, 2]], 1),
    setting([2, 6, 17, 20], 8, [3, 3], [[1, 1], [4, 4], [4, 4]], 1),
    setting([2, 8, 10, 21], 8, [5, 1], [[1, 1], [2, 0], [1, 1]], 1),
    setting([2, 8, 10, 21], 8, [1, 5], [[1, 1], [0, 2], [1, 1]], 1),
    setting([1, 4, 12, 14], 12, [2, 2], [[2, 2], [0, 0], [1, 1]], 1),
    setting([3, 33, 5, 7], 20, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 300, 3, 5], 40, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([5, 40, 2, 2], 70, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 20, 2, 3], 300, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 9, 11, 8], 10, [1, 1], [[2, 2], [0, 0], [1, 1]], 1),
    setting([2, 9, 11, 8], 10, [1, 1], [[2, 3], [1, 0], [1, 1]], 1),
    setting([1, 3, 9, 17], 4, [4, 3], [[3, 2], [2, 1], [1, 2]], 1),
    setting([1, 2, 20, 9], 3, [3, 2], [[2, 1], [1, 0], [3, 2]], 1),
    setting([2, 2, 5, 5], 3, [2, 2], [[1, 1], [3, 3], [1, 1]], 1),
    setting([1, 2, 9, 9], 3, [2, 3], [[4, 5], [0, 1], [1, 1]], 1),
    setting([2, 6, 9, 10], 9, [3, 3], [[1, 1], [1, 1], [1, 1]], 3),
    setting([2, 8, 9, 10], 8, [3, 3], [[2, 2], [1, 1], [1, 1]], 2),
    setting([2, 5, 9, 10], 5, [3, 3], [[1, 1], [1, 1], [1, 1]], 5),
    setting([2, 5, 9, 11], 5, [3, 3], [[2, 2], [1, 1], [1, 1]], 5),
    setting([1, 4, 13, 9], 8, [3, 3], [[1, 1], [2, 2], [2, 2]], 4),
    // Rows of outputs that read nothing but padding.
    setting([1, 2, 4, 64], 8, [3, 3], [[1, 1], [40, 1], [1, 1]], 1),
    setting([1, 2, 4, 70], 8, [3, 3], [[2, 2], [40, 1], [1, 1]], 1),
    setting([2, 3, 4, 9], 3, [3, 3], [[2, 2], [40, 20], [1, 1]], 3),
    setting([2, 3, 4, 9], 3, [3, 3], [[1, 1], [20, 20], [1, 1]], 3),
    setting([1, 3, 8, 19], 3, [5, 3], [[1, 2], [2, 0], [1, 1]], 3),
    setting([2, 3, 8, 9], 3, [1, 1], [[1, 1], [0, 0], [1, 1]], 3),
    setting([1, 3, 3, 4], 6, [3, 4], [[1, 1], [0, 0], [1, 1]], 3),
    setting([4, 2, 40, 50], 3, [3, 3], [[1, 1], [1, 1], [1, 1]], 1),
    setting([1, 70, 6, 6], 260, [3, 3], [[1, 1], [0, 0], [1, 1]], 1),
    // Rows of whole vectors, and longer than one; several regions of an image, several images of a region.
    setting([3, 20, 8, 8], 18, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 20, 40, 48], 10, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([2, 7, 44, 32], 9, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([1, 5, 37, 33], 7, [1, 1], [[1, 1], [0, 0], [1, 1]], 1),
    setting([3, 30, 6, 32], 13, [3, 3], [[1, 1], [1, 1], [1, 1]], 1),
    setting([1, 5, 32, 32], 4, [3, 3], [[1, 1], [16, 16], [16, 16]], 1),
    setting([2, 3, 66, 98], 5, [3, 3], [[2, 2], [1, 1], [1, 1]], 1),
    setting([2, 6, 33, 34], 6, [2, 2], [[2, 2], [0, 0], [1, 1]], 2),
    // Dilations near the size of the map, with several blocks of channels and parts of rows.
    setting([2, 260, 5, 6], 390, [3, 3], [[1, 1], [4, 5], [4, 5]], 1),
    // More taps than a packed panel has rows.
    setting([1, 2, 21, 40], 3, [17, 17], [[1, 1], [8, 8], [1, 1]], 1),
];

/// What TensorFlow calls "SAME": ⌈size / stride⌉ outputs, the odd zero after the last pixel. With stride 1 that would be
/// symmetric, so there the zeros after the image are more than it says.
fn same(size: usize, kernel: usize, stride: usize, dilation: usize) -> (usize, usize) {
    let extent = (kernel - 1) * dilation + 1;
    let zeros = ((size.div_ceil(stride) - 1) * stride + extent).saturating_sub(size);
    (zeros / 2, if stride == 1 { 1 + size % 2 } else { zeros % 2 })
}

/// [`SETTINGS`], and every stride, kernel and dilation of the networks with zeros after the image only.
fn shapes() -> Vec<Conv2dShape> {
    let mut shapes: Vec<Conv2dShape> = SETTINGS.iter().map(Setting::shape).collect();
    for case in 0..64 {
        let pick = |bit: usize| case >> bit & 1;
        let (stride, kernel, dilation) = (1 + pick(0), 3 + 2 * pick(1), 1 + pick(2));
        let [height, width] = [[11, 14], [12, 9]][pick(3)];
        let [(top, below), (left, right)] = [height, width].map(|size| same(size, kernel, stride, dilation));
        let padding = [[top, left], [0, 0]][pick(5)];
        let (channels, filters, groups) = [(18, 20, 1), (5, 5, 5)][pick(4)];
        let options = [[stride; 2], padding, [dilation; 2]];
        let plain = setting([2, channels, height, width], filters, [kernel; 2], options, groups);
        shapes.push(Setting { extra_padding: [below, right], ..plain }.shape());
    }
    shapes
}

/// The shapes that [`shapes`] must give, so that none is lost.
const SHAPES: usize = SETTINGS.len() + 64;

fn draw(stream: &mut Stream, len: usize) -> (Vec<f32>, Vec<f64>) {
    let narrow: Vec<f32> = (0..len).map(|_| stream.normal() as f32).collect();
    let wide = narrow.iter().map(|&value| f64::from(value)).collect();
    (narrow, wide)
}

#[track_caller]
fn assert_close(what: &str, shape: &Conv2dShape, got: &[f32], expected: &[f64]) {
    let scale = expected.iter().fold(1e-3f64, |max, value| max.max(value.abs()));
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / scale;
        assert!(error <= TOLERANCE, "{what}, {shape:?}: element {index} is {got}, expected {expected}");
    }
}

/// All passes of one implementation: (y, grad_x, grad_weight); the outputs start as rubbish.
type Passes<'a> = dyn Fn(&Conv2dShape, &Data, &mut [f32], &mut [f32], &mut [f32]) + 'a;

struct Data {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    grad_y: Vec<f32>,
}

fn check(what: &str, passes: &Passes<'_>, takes: impl Fn(&Conv2dShape) -> bool) -> usize {
    let mut count = 0;
    for (index, shape) in shapes().into_iter().enumerate() {
        shape.check().unwrap();
        if !takes(&shape) {
            continue;
        }
        count += 1;
        let mut stream = Stream::new(3, "conv2d", 0, index as u64);
        let (x, wide_x) = draw(&mut stream, shape.input_len());
        let (weight, wide_weight) = draw(&mut stream, shape.weight_len());
        let (bias, wide_bias) = draw(&mut stream, shape.out_channels);
        let (grad_y, wide_grad_y) = draw(&mut stream, shape.output_len());
        let (mut y, mut grad_x) = (vec![f32::NAN; shape.output_len()], vec![f32::NAN; shape.input_len()]);
        let mut grad_weight = vec![f32::NAN; shape.weight_len()];
        // What an earlier call left in the buffers must not show.
        let nan = [&x, &weight, &bias, &grad_y].map(|values| vec![f32::NAN; values.len()]);
        let [nan_x, nan_weight, nan_bias, nan_grad_y] = nan;
        let rubbish = Data { x: nan_x, weight: nan_weight, bias: nan_bias, grad_y: nan_grad_y };
        passes(&shape, &rubbish, &mut y, &mut grad_x, &mut grad_weight);
        passes(&shape, &Data { x, weight, bias, grad_y }, &mut y, &mut grad_x, &mut grad_weight);
        let mut expected = vec![f64::NAN; y.len()];
        forward(&shape, &wide_x, &wide_weight, Some(&wide_bias), &mut expected).unwrap();
        assert_close(&format!("{what} forward"), &shape, &y, &expected);
        let mut expected = vec![f64::NAN; grad_x.len()];
        backward_input(&shape, &wide_weight, &wide_grad_y, &mut expected).unwrap();
        assert_close(&format!("{what} backward_input"), &shape, &grad_x, &expected);
        let mut expected = vec![f64::NAN; grad_weight.len()];
        backward_weight(&shape, &wide_x, &wide_grad_y, &mut expected).unwrap();
        assert_close(&format!("{what} backward_weight"), &shape, &grad_weight, &expected);
    }
    count
}

fn by_algorithm(algorithm: Algorithm) -> impl Fn(&Conv2dShape, &Data, &mut [f32], &mut [f32], &mut [f32]) {
    move |shape, data, y, grad_x, grad_weight| {
        forward_with(algorithm, shape, &data.x, &data.weight, Some(&data.bias), y).unwrap();
        backward_input_with(algorithm, shape, &data.weight, &data.grad_y, grad_x).unwrap();
        backward_weight_with(algorithm, shape, &data.x, &data.grad_y, grad_weight).unwrap();
    }
}

#[test]
fn the_f32_formula_agrees_with_f64() {
    assert_eq!(check("reference", &by_algorithm(Algorithm::Reference), |_| true), SHAPES);
}

#[test]
fn matrix_products_agree_with_the_formula() {
    assert_eq!(check("gemm", &by_algorithm(Algorithm::Gemm), |_| true), SHAPES);
}

#[test]
fn matrix_products_with_any_instructions_agree_with_the_formula() {
    for instructions in Instructions::all() {
        let passes = |shape: &Conv2dShape, data: &Data, y: &mut [f32], grad_x: &mut [f32], grad_weight: &mut [f32]| {
            implicit::forward(instructions, shape, &data.x, &data.weight, Some(&data.bias), uninit(y));
            input_gradient::backward_input(instructions, shape, &data.weight, &data.grad_y, uninit(grad_x));
            weight_gradient::backward_weight(instructions, shape, &data.x, &data.grad_y, grad_weight);
        };
        assert_eq!(check(&format!("{instructions:?}"), &passes, |_| true), SHAPES);
        let by_taps = |shape: &Conv2dShape, data: &Data, y: &mut [f32], grad_x: &mut [f32], grad_weight: &mut [f32]| {
            tap_by_tap::forward(instructions, shape, &data.x, &data.weight, Some(&data.bias), uninit(y));
            tap_by_tap::backward_input(instructions, shape, &data.weight, &data.grad_y, uninit(grad_x));
            tap_by_tap::backward_weight(instructions, shape, &data.x, &data.grad_y, grad_weight);
        };
        assert!(check(&format!("{instructions:?}, tap by tap"), &by_taps, tap_by_tap::computes) >= 6 + 32);
    }
}

#[test]
fn products_by_taps_agree_with_the_formula() {
    let takes = |shape: &Conv2dShape| shape.stride == [1, 1];
    assert!(check("tap by tap", &by_algorithm(Algorithm::TapByTap), takes) >= 6 + 32);
}

#[test]
fn row_loops_agree_with_the_formula() {
    let takes = |shape: &Conv2dShape| shape.group_in_channels() == 1;
    assert!(check("depthwise", &by_algorithm(Algorithm::Depthwise), takes) >= 6 + 32);
}

#[test]
fn the_chosen_algorithm_agrees_with_the_formula() {
    let passes = |shape: &Conv2dShape, data: &Data, y: &mut [f32], grad_x: &mut [f32], grad_weight: &mut [f32]| {
        by_algorithm(dispatch::choose(winograd::Task::Convolution, shape, true))(shape, data, y, grad_x, grad_weight);
    };
    assert_eq!(check("chosen", &passes, |_| true), SHAPES);
}

#[test]
fn the_default_passes_agree_with_the_formula_where_taps_read_nothing_but_padding() {
    let mut count = 0;
    for (size, padding, dilation) in [
        ([9, 12], [9, 12], [9, 12]),
        ([9, 12], [9, 13], [9, 13]),
        ([9, 12], [2, 15], [2, 15]),
        ([9, 12], [5, 7], [5, 7]),
        ([9, 12], [7, 11], [6, 11]),
        ([2, 2], [1, 1], [1, 1]),
        ([1, 30], [4, 1], [3, 2]),
    ] {
        for (channels, groups) in [([18, 20], 1), ([6, 6], 6), ([6, 4], 2)] {
            let input = [2, channels[0], size[0], size[1]];
            let shape = setting(input, channels[1], [3, 3], [[1, 1], padding, dilation], groups).shape();
            let mut stream = Stream::new(6, "conv2d", 0, count);
            let (x, wide_x) = draw(&mut stream, shape.input_len());
            let (weight, wide_weight) = draw(&mut stream, shape.weight_len());
            let (grad_y, wide_grad_y) = draw(&mut stream, shape.output_len());
            let plain = Algorithm::Reference;
            let mut expected = vec![f64::NAN; shape.output_len()];
            forward_with(plain, &shape, &wide_x, &wide_weight, None, &mut expected).unwrap();
            assert_close("forward", &shape, &forward_vec(&shape, &x, &weight, None).unwrap(), &expected);
            let mut y = vec![f32::NAN; expected.len()];
            forward(&shape, &x, &weight, None, &mut y).unwrap();
            assert_close("forward", &shape, &y, &expected);
            let mut expected = vec![f64::NAN; shape.input_len()];
            backward_input_with(plain, &shape, &wide_weight, &wide_grad_y, &mut expected).unwrap();
            let grad_x = backward_input_vec(&shape, &weight, &grad_y).unwrap();
            assert_close("backward_input", &shape, &grad_x, &expected);
            let mut grad_x = vec![f32::NAN; expected.len()];
            backward_input(&shape, &weight, &grad_y, &mut grad_x).unwrap();
            assert_close("backward_input", &shape, &grad_x, &expected);
            let mut expected = vec![f64::NAN; shape.weight_len()];
            backward_weight_with(plain, &shape, &wide_x, &wide_grad_y, &mut expected).unwrap();
            let mut grad_weight = vec![f32::NAN; shape.weight_len()];
            backward_weight(&shape, &x, &grad_y, &mut grad_weight).unwrap();
            assert_close("backward_weight", &shape, &grad_weight, &expected);
            count += 1;
        }
    }
    assert_eq!(count, 21);
}

#[test]
fn one_thread_and_many_give_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut bits = Vec::new();
        for (index, shape) in shapes().into_iter().enumerate() {
            let mut stream = Stream::new(4, "conv2d", 0, index as u64);
            let mut next = |len: usize| draw(&mut stream, len).0;
            let (x, weight, bias) = (next(shape.input_len()), next(shape.weight_len()), next(shape.out_channels));
            let grad_y = next(shape.output_len());
            let (mut y, mut grad_x) = (vec![0.0; shape.output_len()], vec![0.0; shape.input_len()]);
            let (mut grad_weight, mut grad_bias) = (vec![0.0; shape.weight_len()], vec![0.0; shape.out_channels]);
            pool.install(|| {
                forward(&shape, &x, &weight, Some(&bias), &mut y).unwrap();
                backward_input(&shape, &weight, &grad_y, &mut grad_x).unwrap();
                assert_eq!(forward_vec(&shape, &x, &weight, Some(&bias)).unwrap(), y);
                assert_eq!(backward_input_vec(&shape, &weight, &grad_y).unwrap(), grad_x);
                backward_weight(&shape, &x, &grad_y, &mut grad_weight).unwrap();
                backward_bias(&shape, &grad_y, &mut grad_bias).unwrap();
            });
            let all = y.iter().chain(&grad_x).chain(&grad_weight).chain(&grad_bias);
            bits.extend(all.map(|value: &f32| value.to_bits()));
        }
        bits
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5), "the number of threads changed a result");
}

#[test]
fn a_box_filter_counts_the_pixels_inside() {
    let shape = setting([1, 1, 2, 3], 1, [3, 3], [[1, 1], [1, 1], [1, 1]], 1).shape();
    let mut y = [0f32; 6];
    forward(&shape, &[1.0; 6], &[1.0; 9], Some(&[10.0]), &mut y).unwrap();
    assert_eq!(y, [14.0, 16.0, 14.0, 14.0, 16.0, 14.0]);
    let mut grad_bias = [0f32; 1];
    backward_bias(&shape, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut grad_bias).unwrap();
    assert_eq!(grad_bias, [21.0]);
}

#[test]
fn extra_padding_is_zeros_after_the_last_row_and_column() {
    let mut count = 0;
    for shape in shapes().into_iter().filter(|shape| shape.extra_padding != [0, 0]) {
        let [below, right] = shape.extra_padding;
        let (height, width) = (shape.in_height + below, shape.in_width + right);
        let larger = Conv2dShape { in_height: height, in_width: width, extra_padding: [0, 0], ..shape };
        let mut stream = Stream::new(5, "conv2d", 0, count);
        let mut next = |len: usize| draw(&mut stream, len).1;
        let (x, weight, grad_y) = (next(shape.input_len()), next(shape.weight_len()), next(shape.output_len()));
        let mut framed = vec![0.0; larger.input_len()];
        for (framed, x) in framed.chunks_mut(height * width).zip(x.chunks(shape.in_height * shape.in_width)) {
            for (framed, x) in framed.chunks_mut(width).zip(x.chunks(shape.in_width)) {
                framed[..shape.in_width].copy_from_slice(x);
            }
        }
        assert_eq!(
            forward_vec(&shape, &x, &weight, None).unwrap(),
            forward_vec(&larger, &framed, &weight, None).unwrap(),
            "{shape:?}"
        );
        let gradient = |shape: &Conv2dShape, x: &[f64]| {
            let mut grad_weight = vec![f64::NAN; shape.weight_len()];
            backward_weight(shape, x, &grad_y, &mut grad_weight).unwrap();
            grad_weight
        };
        let (got, expected) = (gradient(&shape, &x), gradient(&larger, &framed));
        assert!(got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-11), "{shape:?}");
        let grad_x = backward_input_vec(&shape, &weight, &grad_y).unwrap();
        let framed = backward_input_vec(&larger, &weight, &grad_y).unwrap();
        for (grad_x, framed) in grad_x.chunks(shape.in_height * shape.in_width).zip(framed.chunks(height * width)) {
            for (grad_x, framed) in grad_x.chunks(shape.in_width).zip(framed.chunks(width)) {
                assert_eq!(grad_x, &framed[..shape.in_width], "{shape:?}");
            }
        }
        count += 1;
    }
    assert!(count >= 48, "{count} shapes with extra padding");
}

#[test]
fn impossible_settings_name_what_is_wrong() {
    let good = Conv2dShape { padding: [1, 1], ..Conv2dShape::new([2, 4, 5, 6], 8, [3, 3]).unwrap() };
    let cases = [
        (Conv2dShape { stride: [0, 1], ..good }, "vertical stride is 0"),
        (Conv2dShape { dilation: [1, 0], ..good }, "horizontal dilation is 0"),
        (Conv2dShape { groups: 0, ..good }, "groups is 0"),
        (Conv2dShape { groups: 3, ..good }, "in_channels is 4, expected a multiple of groups = 3"),
        (Conv2dShape { out_channels: 6, groups: 4, ..good }, "out_channels is 6"),
        (Conv2dShape { kernel: [8, 3], ..good }, "kernel height is 8"),
        (Conv2dShape { dilation: [1, 4], ..good }, "kernel width is 3 with dilation 4, extent 9"),
        (Conv2dShape { kernel: [usize::MAX, 3], dilation: [2, 1], ..good }, "kernel height"),
        (Conv2dShape { batch: usize::MAX / 8, ..good }, "x is"),
    ];
    for (shape, message) in cases {
        let error = shape.check().unwrap_err().to_string();
        assert!(error.contains(message), "{error} does not contain {message}");
    }
    let (x, weight, mut y) = (vec![0f32; good.input_len()], vec![0f32; good.weight_len()], vec![0f32; 1]);
    let error = forward(&good, &x, &weight, None, &mut y).unwrap_err().to_string();
    assert_eq!(error, "conv2d: y has 1 elements, expected 480");
    let error = forward(&good, &x, &weight, Some(&[0.0; 3]), &mut vec![0.0; 480]).unwrap_err().to_string();
    assert_eq!(error, "conv2d: bias has 3 elements, expected 8");
    let error = forward_with(Algorithm::Depthwise, &good, &x, &weight, None, &mut vec![0.0; 480]).unwrap_err();
    assert!(error.to_string().contains("Depthwise"), "{error}");
}
