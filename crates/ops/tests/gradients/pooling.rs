//! Rows of the poolings and of max unpooling.

use dsd_ops::{PoolOptions, adaptive_avg_pool2d, avg_pool2d, max_pool2d, max_pool2d_with_indices, max_unpool2d};

use super::Table;
use crate::inputs::{distinct, normal};

const HALF: PoolOptions = PoolOptions { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false };
const OVERLAPPING: PoolOptions = PoolOptions { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };

/// (what, size of x, options): the windows of max and average pooling.
fn windows() -> [(&'static str, [usize; 4], PoolOptions); 14] {
    let ceil = |options| PoolOptions { ceil_mode: true, ..options };
    let per_axis = PoolOptions { kernel: [2, 3], stride: [3, 1], padding: [1, 0], ceil_mode: false };
    [
        ("2x2", [2, 2, 4, 6], HALF),
        ("2x2, odd size", [1, 2, 5, 7], HALF),
        ("2x2, odd size, ceil", [1, 2, 5, 7], ceil(HALF)),
        ("3x3 stride 2, 6x7", [2, 2, 6, 7], OVERLAPPING),
        ("3x3 stride 2, 7x8", [1, 3, 7, 8], OVERLAPPING),
        ("3x3 stride 2, 6x8, ceil", [1, 1, 6, 8], ceil(OVERLAPPING)),
        ("3x3 stride 2 on one pixel", [1, 1, 1, 1], OVERLAPPING),
        ("3x3 stride 1", [1, 2, 4, 5], PoolOptions { stride: [1, 1], ..OVERLAPPING }),
        ("2x2 stride 3 that leaves pixels out", [1, 2, 8, 9], PoolOptions { stride: [3, 3], ..HALF }),
        ("1x1", [1, 2, 3, 4], PoolOptions { kernel: [1, 1], stride: [1, 1], ..HALF }),
        ("whole image", [2, 2, 3, 5], PoolOptions { kernel: [3, 5], ..HALF }),
        ("per axis", [1, 2, 7, 6], per_axis),
        ("per axis, ceil", [1, 2, 7, 6], ceil(per_axis)),
        ("ceil, last window would start in the padding", [1, 1, 3, 5], PoolOptions { padding: [1, 1], ..ceil(HALF) }),
    ]
}

pub(super) fn rows(table: &mut Table) {
    for (what, size, options) in windows() {
        table.row("max_pool2d", what, &[distinct(21, &size)], move |t| max_pool2d(&t[0], options));
        table.row("max_pool2d_with_indices", what, &[distinct(22, &size)], move |t| {
            Ok(max_pool2d_with_indices(&t[0], options)?.0)
        });
        for counted in [true, false] {
            let what = format!("{what}, padding {}counted", if counted { "" } else { "not " });
            table.row("avg_pool2d", what, &[normal(23, &size)], move |t| avg_pool2d(&t[0], options, counted));
        }
    }
    // Everything below the padding's zeros, were it zeros.
    let negative = (distinct(24, &[1, 2, 4, 5]) - 100.0).unwrap();
    table.row("max_pool2d", "all values negative", &[negative], move |t| max_pool2d(&t[0], OVERLAPPING));

    let x = [distinct(25, &[2, 2, 6, 5])];
    table.situations("max_pool2d", &x, move |t| max_pool2d(&t[0], OVERLAPPING));
    table.situations("max_pool2d_with_indices", &x, move |t| Ok(max_pool2d_with_indices(&t[0], HALF)?.0));
    table.situations("avg_pool2d", &x, move |t| avg_pool2d(&t[0], OVERLAPPING, true));

    for (what, size) in [("even", [2, 2, 4, 6]), ("odd", [1, 3, 5, 7]), ("one channel", [1, 1, 2, 3])] {
        let (pooled, indices) = max_pool2d_with_indices(&distinct(26, &size), HALF).unwrap();
        let whole = [size[2], size[3]];
        let x = normal(27, pooled.dims());
        table.row("max_unpool2d", what, &[x], move |t| max_unpool2d(&t[0], &indices, whole));
    }
    let (pooled, indices) = max_pool2d_with_indices(&distinct(28, &[2, 2, 5, 7]), HALF).unwrap();
    let strided = indices.transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap();
    table.row("max_unpool2d", "strided indices", &[normal(29, pooled.dims())], move |t| {
        max_unpool2d(&t[0], &strided, [5, 7])
    });
    table.situations("max_unpool2d", &[normal(30, pooled.dims())], move |t| max_unpool2d(&t[0], &indices, [5, 7]));
    table.row("max_unpool2d", "back through its own pooling", &[distinct(31, &[1, 2, 5, 7])], move |t| {
        let (pooled, indices) = max_pool2d_with_indices(&t[0], HALF)?;
        max_unpool2d(&pooled, &indices, [5, 7])
    });

    let bins: [(&str, [usize; 4], [usize; 2]); 8] = [
        ("1 bin", [2, 3, 5, 7], [1, 1]),
        ("2 bins", [1, 2, 5, 7], [2, 2]),
        ("3 bins", [1, 2, 7, 8], [3, 3]),
        ("6 bins", [1, 2, 8, 11], [6, 6]),
        ("as many bins as pixels", [1, 1, 4, 5], [4, 5]),
        ("more bins than pixels", [1, 2, 4, 5], [6, 7]),
        ("bins per axis", [2, 1, 6, 7], [4, 1]),
        ("one pixel", [1, 1, 1, 1], [3, 2]),
    ];
    for (what, size, bins) in bins {
        table.row("adaptive_avg_pool2d", what, &[normal(32, &size)], move |t| adaptive_avg_pool2d(&t[0], bins));
    }
    table.situations("adaptive_avg_pool2d", &[normal(33, &[2, 2, 5, 7])], |t| adaptive_avg_pool2d(&t[0], [3, 2]));
}
