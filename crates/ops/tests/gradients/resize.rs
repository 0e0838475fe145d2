//! Rows of the resizes.

use dsd_ops::{resize_bilinear, resize_nearest};

use super::Table;
use crate::inputs::normal;

pub(super) fn rows(table: &mut Table) {
    let sizes: [(&str, [usize; 4], [usize; 2]); 11] = [
        ("up by fractions", [2, 2, 3, 4], [7, 9]),
        ("up by 2", [1, 2, 3, 5], [6, 10]),
        ("up by 8", [1, 1, 2, 3], [16, 24]),
        ("down by fractions", [1, 2, 9, 8], [4, 5]),
        ("down by 2", [1, 1, 6, 8], [3, 4]),
        ("up and down", [1, 1, 4, 9], [9, 4]),
        ("same size", [2, 2, 4, 5], [4, 5]),
        ("from one pixel", [1, 3, 1, 1], [3, 4]),
        ("from one row", [1, 2, 1, 4], [3, 6]),
        ("to one pixel", [1, 2, 4, 5], [1, 1]),
        ("to one column", [1, 2, 4, 5], [7, 1]),
    ];
    for (what, x, size) in sizes {
        for corners in [false, true] {
            let what = format!("{what}, align_corners {corners}");
            table.row("resize_bilinear", what, &[normal(41, &x)], move |t| resize_bilinear(&t[0], size, corners));
        }
        table.row("resize_nearest", what, &[normal(42, &x)], move |t| resize_nearest(&t[0], size));
    }
    for size in [[7, 9], [3, 4]] {
        let x = [normal(43, &[2, 2, 3, 4])];
        table.situations("resize_bilinear", &x, move |t| resize_bilinear(&t[0], size, false));
        table.situations("resize_bilinear", &x, move |t| resize_bilinear(&t[0], size, true));
        table.situations("resize_nearest", &x, move |t| resize_nearest(&t[0], size));
    }
}
