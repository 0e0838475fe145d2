//! Rows of conv2d and conv_transpose2d.

use dsd_ops::{Conv2dOptions, ConvTranspose2dOptions, conv_transpose2d, conv2d};

use super::Table;
use crate::inputs::normal;

const CONV: Conv2dOptions =
    Conv2dOptions { stride: [1, 1], padding: [0, 0], extra_padding: [0, 0], dilation: [1, 1], groups: 1 };
const TRANSPOSE: ConvTranspose2dOptions =
    ConvTranspose2dOptions { stride: [1, 1], padding: [0, 0], output_padding: [0, 0], dilation: [1, 1], groups: 1 };

pub(super) fn rows(table: &mut Table) {
    conv2d_rows(table);
    conv_transpose2d_rows(table);
}

fn conv2d_rows(table: &mut Table) {
    let same = Conv2dOptions { padding: [1, 1], ..CONV };
    let half = Conv2dOptions { stride: [2, 2], padding: [1, 1], ..CONV };
    let after = Conv2dOptions { extra_padding: [1, 1], ..CONV };
    let cases: [(&str, [usize; 4], [usize; 4], Conv2dOptions); 34] = [
        ("3x3", [2, 3, 5, 7], [4, 3, 3, 3], same),
        ("3x3 without padding", [1, 2, 5, 6], [3, 2, 3, 3], CONV),
        ("3x3 on one pixel", [1, 1, 1, 1], [1, 1, 3, 3], same),
        ("one channel to one", [1, 1, 5, 4], [1, 1, 3, 3], same),
        ("many channels", [1, 17, 4, 5], [18, 17, 3, 3], same),
        ("kernel as large as the image", [1, 2, 3, 4], [2, 2, 3, 4], CONV),
        ("padding wider than the kernel's half", [1, 2, 3, 4], [2, 2, 3, 3], Conv2dOptions { padding: [3, 2], ..CONV }),
        ("3x3 stride 2, 6x7", [2, 2, 6, 7], [3, 2, 3, 3], half),
        ("3x3 stride 2, 7x6", [1, 2, 7, 6], [3, 2, 3, 3], half),
        ("3x3 stride 2, 8x5", [1, 2, 8, 5], [3, 2, 3, 3], half),
        ("3x3 stride 2 on one pixel", [1, 2, 1, 1], [3, 2, 3, 3], half),
        ("3x3 stride 3 that leaves pixels out", [1, 2, 8, 9], [2, 2, 2, 2], Conv2dOptions { stride: [3, 3], ..CONV }),
        ("1x1", [2, 5, 3, 4], [3, 5, 1, 1], CONV),
        ("1x1 padded", [1, 2, 3, 4], [3, 2, 1, 1], same),
        ("1x1 on one pixel", [1, 4, 1, 1], [3, 4, 1, 1], CONV),
        ("1x1 stride 2, 7x8", [1, 3, 7, 8], [4, 3, 1, 1], Conv2dOptions { stride: [2, 2], ..CONV }),
        ("7x7 stride 2", [1, 3, 9, 12], [2, 3, 7, 7], Conv2dOptions { stride: [2, 2], padding: [3, 3], ..CONV }),
        ("dilation 2", [1, 2, 7, 9], [2, 2, 3, 3], Conv2dOptions { padding: [2, 2], dilation: [2, 2], ..CONV }),
        (
            "dilation 4 wider than the image",
            [1, 2, 3, 5],
            [2, 2, 3, 3],
            Conv2dOptions { padding: [4, 4], dilation: [4, 4], ..CONV },
        ),
        (
            "stride, padding and dilation per axis",
            [1, 2, 8, 9],
            [2, 2, 3, 2],
            Conv2dOptions { stride: [1, 3], padding: [0, 1], extra_padding: [0, 0], dilation: [3, 2], groups: 1 },
        ),
        ("5x1", [2, 2, 6, 5], [3, 2, 5, 1], Conv2dOptions { padding: [2, 0], ..CONV }),
        ("1x5", [2, 2, 6, 5], [3, 2, 1, 5], Conv2dOptions { padding: [0, 2], ..CONV }),
        ("groups", [2, 4, 5, 4], [6, 2, 3, 3], Conv2dOptions { groups: 2, ..same }),
        ("groups, 1x1 stride 2", [1, 6, 5, 4], [3, 2, 1, 1], Conv2dOptions { stride: [2, 2], groups: 3, ..CONV }),
        (
            "depthwise dilated",
            [1, 3, 7, 6],
            [3, 1, 3, 3],
            Conv2dOptions { padding: [2, 2], dilation: [2, 2], groups: 3, ..CONV },
        ),
        ("depthwise with multiplier", [1, 2, 5, 6], [4, 1, 3, 3], Conv2dOptions { groups: 2, ..same }),
        (
            "depthwise 5x3 stride 1x2",
            [2, 3, 6, 7],
            [3, 1, 5, 3],
            Conv2dOptions { stride: [1, 2], padding: [2, 1], groups: 3, ..CONV },
        ),
        ("zeros after the image", [2, 2, 5, 6], [3, 2, 3, 3], Conv2dOptions { extra_padding: [2, 1], ..CONV }),
        ("SAME 3x3 stride 2, 6x8", [2, 2, 6, 8], [3, 2, 3, 3], Conv2dOptions { stride: [2, 2], ..after }),
        (
            "SAME 5x5 stride 2, 6x8",
            [1, 2, 6, 8],
            [3, 2, 5, 5],
            Conv2dOptions { stride: [2, 2], padding: [1, 1], ..after },
        ),
        (
            "SAME 3x3 stride 2 dilation 2, 5x6",
            [1, 2, 5, 6],
            [2, 2, 3, 3],
            Conv2dOptions { stride: [2, 2], padding: [2, 1], extra_padding: [0, 1], dilation: [2, 2], groups: 1 },
        ),
        (
            "SAME depthwise 3x3 stride 2, 6x7",
            [2, 3, 6, 7],
            [3, 1, 3, 3],
            Conv2dOptions { stride: [2, 2], padding: [0, 1], extra_padding: [1, 0], groups: 3, ..CONV },
        ),
        (
            "SAME depthwise 5x5 stride 2, 6x8",
            [1, 3, 6, 8],
            [3, 1, 5, 5],
            Conv2dOptions { stride: [2, 2], padding: [1, 1], groups: 3, ..after },
        ),
        ("SAME 2x2", [1, 2, 4, 5], [2, 2, 2, 2], after),
    ];
    for (what, x, weight, options) in cases {
        let inputs = [normal(1, &x), normal(2, &weight), normal(3, &weight[..1])];
        table.row("conv2d", what, &inputs, move |t| conv2d(&t[0], &t[1], Some(&t[2]), options));
        table.row("conv2d", format!("{what}, no bias"), &inputs[..2], move |t| conv2d(&t[0], &t[1], None, options));
    }

    // One for each way the kernels go: dense, strided, pointwise, depthwise.
    let pointwise = Conv2dOptions { padding: [0, 0], ..same };
    let depthwise = Conv2dOptions { groups: 3, ..same };
    let depthwise_half = Conv2dOptions { groups: 3, ..half };
    let ways: [([usize; 4], [usize; 4], Conv2dOptions); 6] = [
        ([2, 3, 5, 4], [2, 3, 3, 3], same),
        ([1, 3, 6, 7], [2, 3, 3, 3], half),
        ([2, 3, 5, 4], [4, 3, 1, 1], pointwise),
        ([2, 3, 4, 5], [3, 1, 3, 3], depthwise),
        ([1, 3, 6, 7], [3, 1, 3, 3], depthwise_half),
        ([1, 3, 6, 8], [2, 3, 3, 3], Conv2dOptions { stride: [2, 2], ..after }),
    ];
    for (x, weight, options) in ways {
        let inputs = [normal(4, &x), normal(5, &weight), normal(6, &weight[..1])];
        table.situations("conv2d", &inputs, move |t| conv2d(&t[0], &t[1], Some(&t[2]), options));
        table.situations("conv2d", &inputs[..2], move |t| conv2d(&t[0], &t[1], None, options));
    }
    table.row("conv2d", "one tensor is input and weight", &[normal(7, &[3, 3, 3, 3])], move |t| {
        conv2d(&t[0], &t[0], None, same)
    });
    table.row(
        "conv2d",
        "shared weight in two layers",
        &[normal(8, &[1, 2, 5, 6]), normal(9, &[2, 2, 3, 3])],
        move |t| conv2d(&conv2d(&t[0], &t[1], None, same)?, &t[1], None, half),
    );
}

fn conv_transpose2d_rows(table: &mut Table) {
    let double = ConvTranspose2dOptions { stride: [2, 2], padding: [1, 1], output_padding: [1, 1], ..TRANSPOSE };
    let cases: [(&str, [usize; 4], [usize; 4], ConvTranspose2dOptions); 12] = [
        ("3x3", [1, 2, 4, 5], [2, 3, 3, 3], TRANSPOSE),
        ("3x3 padded", [2, 3, 4, 5], [3, 2, 3, 3], ConvTranspose2dOptions { padding: [1, 1], ..TRANSPOSE }),
        ("3x3 stride 2", [2, 3, 3, 4], [3, 2, 3, 3], double),
        (
            "3x3 stride 2 to an odd size",
            [1, 2, 3, 4],
            [2, 2, 3, 3],
            ConvTranspose2dOptions { output_padding: [0, 1], ..double },
        ),
        ("2x2 stride 2", [1, 3, 3, 5], [3, 2, 2, 2], ConvTranspose2dOptions { stride: [2, 2], ..TRANSPOSE }),
        ("1x1", [1, 3, 3, 5], [3, 4, 1, 1], TRANSPOSE),
        (
            "1x1 stride 3",
            [1, 2, 3, 2],
            [2, 3, 1, 1],
            ConvTranspose2dOptions { stride: [3, 3], output_padding: [2, 1], ..TRANSPOSE },
        ),
        ("one pixel, one channel", [1, 1, 1, 1], [1, 1, 3, 3], TRANSPOSE),
        (
            "everything per axis",
            [1, 2, 4, 3],
            [2, 2, 3, 2],
            ConvTranspose2dOptions {
                stride: [1, 3],
                padding: [1, 0],
                output_padding: [0, 2],
                dilation: [2, 1],
                groups: 1,
            },
        ),
        (
            "dilation 2",
            [1, 2, 4, 5],
            [2, 2, 3, 3],
            ConvTranspose2dOptions { padding: [2, 2], dilation: [2, 2], ..TRANSPOSE },
        ),
        (
            "groups",
            [1, 4, 3, 4],
            [4, 3, 3, 3],
            ConvTranspose2dOptions { stride: [2, 2], padding: [1, 1], groups: 2, ..TRANSPOSE },
        ),
        (
            "depthwise",
            [2, 3, 3, 4],
            [3, 1, 3, 3],
            ConvTranspose2dOptions { output_padding: [1, 0], groups: 3, ..double },
        ),
    ];
    for (what, x, weight, options) in cases {
        let inputs = [normal(11, &x), normal(12, &weight), normal(13, &[weight[1] * options.groups])];
        table.row("conv_transpose2d", what, &inputs, move |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), options));
        table.row("conv_transpose2d", format!("{what}, no bias"), &inputs[..2], move |t| {
            conv_transpose2d(&t[0], &t[1], None, options)
        });
    }
    let inputs = [normal(14, &[2, 3, 3, 4]), normal(15, &[3, 2, 3, 3]), normal(16, &[2])];
    table.situations("conv_transpose2d", &inputs, move |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), double));
    table.situations("conv_transpose2d", &inputs[..2], move |t| conv_transpose2d(&t[0], &t[1], None, double));
}
