//! All passes against direct sums in f64.

use dsd_random::Stream;

use super::grid::Grid;
use super::*;
use crate::fresh::uninit;

/// The tiles with their bounds of max |e| / max |reference|.
const TILES: [(Tile, f64); 3] = [(Tile::Two, 2e-6), (Tile::Four, 1e-5), (Tile::Pair, 2e-6)];

/// A shape without the field names: [N, C, H, W, K], padding, dilation.
type Row = ([usize; 5], [usize; 2], [usize; 2]);

/// Sizes that do not divide into blocks of 16 channels, tiles of 2 or 4, or vectors of 8.
const ROWS: [Row; 29] = [
    ([1, 16, 8, 8, 16], [1, 1], [1, 1]),
    ([2, 16, 12, 16, 16], [1, 1], [1, 1]),
    ([1, 1, 3, 3, 1], [0, 0], [1, 1]),
    ([1, 1, 1, 1, 1], [1, 1], [1, 1]),
    ([3, 5, 1, 2, 7], [1, 1], [1, 1]),
    ([1, 17, 5, 7, 3], [1, 1], [1, 1]),
    ([2, 20, 9, 11, 33], [0, 0], [1, 1]),
    ([1, 33, 13, 10, 20], [2, 2], [1, 1]),
    ([2, 16, 4, 4, 32], [1, 1], [1, 1]),
    ([2, 40, 2, 2, 18], [1, 1], [1, 1]),
    ([1, 9, 7, 30, 12], [0, 2], [1, 1]),
    ([1, 9, 30, 7, 12], [2, 0], [1, 1]),
    ([1, 24, 11, 13, 15], [2, 2], [2, 2]),
    ([1, 24, 11, 13, 15], [0, 0], [2, 2]),
    ([2, 12, 17, 19, 16], [4, 4], [4, 4]),
    ([1, 12, 9, 9, 16], [6, 6], [3, 3]),
    ([1, 18, 10, 21, 17], [1, 3], [1, 3]),
    ([1, 18, 21, 10, 17], [2, 1], [3, 1]),
    ([1, 10, 16, 16, 10], [7, 5], [6, 9]),
    ([1, 16, 6, 420, 16], [1, 1], [1, 1]),
    ([1, 4, 5, 800, 3], [2, 2], [2, 2]),
    ([5, 64, 14, 14, 1], [1, 1], [1, 1]),
    ([4, 3, 33, 29, 32], [1, 1], [1, 1]),
    // Phases of a pixel or two.
    ([1, 20, 10, 7, 17], [5, 4], [5, 4]),
    ([1, 9, 6, 11, 24], [5, 9], [5, 9]),
    ([2, 12, 32, 30, 35], [16, 16], [16, 16]),
    ([1, 18, 3, 2, 5], [2, 1], [2, 1]),
    // Shared out by filters.
    ([1, 128, 8, 8, 256], [1, 1], [1, 1]),
    ([2, 270, 6, 9, 260], [1, 1], [1, 1]),
];

fn shape((sizes, padding, dilation): Row) -> Conv2dShape {
    let [batch, in_channels, in_height, in_width, out_channels] = sizes;
    Conv2dShape {
        batch,
        in_channels,
        in_height,
        in_width,
        out_channels,
        kernel: [3, 3],
        stride: [1, 1],
        padding,
        extra_padding: [0, 0],
        dilation,
        groups: 1,
    }
}

/// x, weight, grad_y.
fn arguments(shape: &Conv2dShape, positive: bool) -> [Vec<f32>; 3] {
    let mut stream = Stream::new(11, "winograd", 0, 0);
    let mut normals = |count: usize, positive: bool| -> Vec<f32> {
        (0..count).map(|_| stream.normal() as f32).map(|value| if positive { value.max(0.0) } else { value }).collect()
    };
    let outputs = shape.batch * shape.out_channels * shape.out_height() * shape.out_width();
    [
        normals(shape.batch * shape.in_channels * shape.in_height * shape.in_width, positive),
        normals(shape.out_channels * shape.in_channels * 9, false),
        normals(outputs, false),
    ]
}

/// y, grad_x and grad_weight in f64, straight from the definition.
fn direct(shape: &Conv2dShape, x: &[f32], weight: &[f32], grad_y: &[f32]) -> [Vec<f64>; 3] {
    let (height, width) = (shape.in_height, shape.in_width);
    let (out_height, out_width) = (shape.out_height(), shape.out_width());
    let mut y = vec![0.0; grad_y.len()];
    let mut grad_x = vec![0.0; x.len()];
    let mut grad_weight = vec![0.0; weight.len()];
    let widen = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    let (x, weight, grad_y) = (widen(x), widen(weight), widen(grad_y));
    for n in 0..shape.batch {
        for k in 0..shape.out_channels {
            for c in 0..shape.in_channels {
                for tap in 0..9 {
                    let at = (k * shape.in_channels + c) * 9 + tap;
                    let shift = [tap / 3 * shape.dilation[0], tap % 3 * shape.dilation[1]];
                    let columns = shape.padding[1].saturating_sub(shift[1])
                        ..out_width.min((width + shape.padding[1]).saturating_sub(shift[1]));
                    if columns.is_empty() {
                        continue;
                    }
                    for i in 0..out_height {
                        let Some(row) = (i + shift[0]).checked_sub(shape.padding[0]).filter(|&row| row < height) else {
                            continue;
                        };
                        let from = ((n * shape.in_channels + c) * height + row) * width + columns.start + shift[1]
                            - shape.padding[1];
                        let to = ((n * shape.out_channels + k) * out_height + i) * out_width + columns.start;
                        let (from, to) = (from..from + columns.len(), to..to + columns.len());
                        let mut sum = 0.0;
                        for ((y, g), (dx, x)) in
                            y[to.clone()].iter_mut().zip(&grad_y[to]).zip(grad_x[from.clone()].iter_mut().zip(&x[from]))
                        {
                            *y += weight[at] * x;
                            *dx += weight[at] * g;
                            sum += g * x;
                        }
                        grad_weight[at] += sum;
                    }
                }
            }
        }
    }
    [y, grad_x, grad_weight]
}

/// y, grad_x and grad_weight by Winograd's algorithm; the outputs start as NaN, so each must be written.
fn fast(settings: Settings, tile: Tile, shape: &Conv2dShape, arguments: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
    let [x, weight, grad_y] = arguments;
    let [mut y, mut grad_x, mut grad_weight] = [grad_y, x, weight].map(|like| vec![f32::NAN; like.len()]);
    convolve(settings, tile, &Layer::forward(shape), x, weight, None, uninit(&mut y));
    convolve(settings, tile, &Layer::backward_input(shape), grad_y, weight, None, uninit(&mut grad_x));
    weight_gradient(settings, tile, &Layer::forward(shape), x, grad_y, &mut grad_weight);
    [y, grad_x, grad_weight]
}

/// max |e| / max |reference|; infinite where a value is not a number.
fn error(values: &[f32], reference: &[f64]) -> f64 {
    let largest = reference.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let worst = values.iter().zip(reference).map(|(&value, expected)| (f64::from(value) - expected).abs());
    worst.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) }) / largest.max(1e-30)
}

fn check(settings: Settings, rows: &[Row], positive: bool) {
    let mut worst = [[0.0; 3]; TILES.len()];
    for &row in rows {
        let shape = shape(row);
        let arguments = arguments(&shape, positive);
        let reference = direct(&shape, &arguments[0], &arguments[1], &arguments[2]);
        for (tile, bound) in TILES.into_iter().filter(|&(tile, _)| computes(tile, &shape)) {
            let results = fast(settings, tile, &shape, &arguments);
            for (index, pass) in ["forward", "backward_input", "backward_weight"].into_iter().enumerate() {
                let e = error(&results[index], &reference[index]);
                assert!(e <= bound, "{pass} {tile:?} {row:?} positive {positive}: {e:.1e} > {bound:.0e}");
                worst[tile as usize][index] = f64::max(worst[tile as usize][index], e);
            }
        }
    }
    let shown = worst.map(|passes| passes.map(|e| format!("{e:.1e}")).join(" "));
    println!(
        "positive {positive}, forward, backward_input, backward_weight: F2 {}; F4 {}; pairs {}",
        shown[0], shown[1], shown[2]
    );
}

#[test]
fn all_passes_agree_with_direct_sums() {
    check(Settings::new(), &ROWS, false);
}

#[test]
fn positive_inputs_lose_no_more_digits_than_the_bound() {
    check(Settings::new(), &ROWS, true);
}

#[test]
fn any_instructions_agree_with_direct_sums() {
    for instructions in Instructions::all() {
        let settings = Settings { instructions, ..Settings::new() };
        check(settings, &ROWS, false);
        check(settings, &ROWS[..5], true);
    }
}

/// As [`Limits::SMALL`], but every task has sums of its own, and no thread rounds of its own.
const SMALL_OWN_SUMS: Limits = Limits { own_sum_blocks: usize::MAX, own_round_blocks: 0, ..Limits::SMALL };

/// As [`Limits::SMALL`], but every task of the gradient of the weights has some channels and all tiles.
const SMALL_CHANNELS: Limits = Limits { channel_tiles: usize::MAX, ..Limits::SMALL };

#[test]
fn little_work_memory_gives_the_same_results() {
    for limits in [Limits::SMALL, SMALL_OWN_SUMS, SMALL_CHANNELS] {
        check(Settings { limits, ..Settings::new() }, &ROWS, false);
    }
    let settings = Settings { limits: Limits::SMALL, ..Settings::new() };
    check(settings, &[([2, 70, 18, 22, 66], [1, 1], [1, 1]), ([1, 34, 30, 41, 130], [2, 2], [2, 2])], true);
}

#[test]
fn gradients_that_are_transformed_once_serve_every_group_of_input_channels() {
    // Nineteen blocks of input channels, of which eight fit beside two of output channels.
    let row: Row = ([2, 290, 10, 13, 20], [1, 1], [1, 1]);
    let grid = Grid::new(&Layer::forward(&shape(row)), 4);
    let held = 6 * 6 * grid.strips * grid.strip_tiles() * (2 + 8);
    let limits = Limits {
        channel_tiles: 0,
        halved_sum_blocks: 0,
        many_sum_blocks: 0,
        most_gradient_round_blocks: held,
        ..Limits::DEFAULT
    };
    for positive in [false, true] {
        check(Settings { limits, ..Settings::new() }, &[row], positive);
    }
}

#[test]
fn one_thread_and_more_give_the_same_bits() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for &row in ROWS.iter().skip(6) {
        let shape = shape(row);
        let arguments = arguments(&shape, false);
        for limits in [Limits::DEFAULT, Limits::SMALL, SMALL_OWN_SUMS, SMALL_CHANNELS] {
            let settings = Settings { limits, ..Settings::new() };
            for (tile, _) in TILES.into_iter().filter(|&(tile, _)| computes(tile, &shape)) {
                let [one, two, three] =
                    [1, 2, 3].map(|threads| pool(threads).install(|| fast(settings, tile, &shape, &arguments)));
                let bits =
                    |results: &[Vec<f32>]| -> Vec<u32> { results.concat().into_iter().map(f32::to_bits).collect() };
                let same = bits(&one) == bits(&two) && bits(&one) == bits(&three);
                assert!(same, "{tile:?} {row:?} {limits:?}");
            }
        }
    }
}

#[test]
fn operations_that_run_at_once_do_not_disturb_each_other() {
    let shapes = [ROWS[7], ROWS[12], ROWS[27], ROWS[28]].map(shape);
    let run = |shape: &Conv2dShape| fast(Settings::new(), Tile::Four, shape, &arguments(shape, false));
    let alone = shapes.each_ref().map(run);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for (shape, alone) in shapes.iter().zip(&alone) {
                scope.spawn(move || assert_eq!(run(shape), *alone));
            }
        }
    });
}

#[test]
fn other_kernels_strides_and_groups_are_left_to_others() {
    let good = shape(([2, 64, 32, 32, 64], [1, 1], [1, 1]));
    for bad in [
        Conv2dShape { kernel: [3, 1], ..good },
        Conv2dShape { stride: [2, 1], ..good },
        Conv2dShape { groups: 2, ..good },
        Conv2dShape { padding: [3, 1], ..good },
        Conv2dShape { extra_padding: [0, 1], ..good },
    ] {
        for tile in [Tile::Two, Tile::Four, Tile::Pair] {
            assert!(!computes(tile, &bad), "{tile:?} {bad:?}");
            assert_eq!(cost(tile, Task::Convolution, &bad), None);
        }
    }
    let pairs =
        |size: usize, padding: [usize; 2]| computes(Tile::Pair, &shape(([4, 32, size, size, 32], padding, [16, 16])));
    assert!(pairs(32, [16, 16]) && !pairs(33, [16, 16]) && !pairs(32, [16, 15]));
}
