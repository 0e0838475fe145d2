//! Operations with their graph, forward and backward.

use anyhow::Result;
use dsd_ops::{
    Activation, Conv2dOptions, CrossEntropyOptions, PoolOptions, adaptive_avg_pool2d, batch_norm_train, conv2d,
    cross_entropy, max_pool2d, prelu, resize_bilinear,
};
use serde_json::json;

use super::inputs::{Upstream, labels, var};
use super::{Bench, Case};

const CLASSES: usize = 11;

/// One operation each, forward and backward.
pub(super) fn ops(bench: &mut Bench) -> Result<()> {
    let x = var(&[4, 64, 64, 64], "x")?;
    let scale = var(&[64], "scale")?;
    let shift = var(&[64], "shift")?;
    let weight = var(&[64, 64, 3, 3], "weight")?;
    let window = PoolOptions { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let convolution = Conv2dOptions { padding: [1, 1], ..Conv2dOptions::default() };
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "conv 3x3 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "convolution", "x": [4, 64, 64, 64] }),
        ),
        || upstream.run(|| Ok(conv2d(x.as_tensor(), weight.as_tensor(), None, convolution)?)),
    )?;
    for dims in [[4, 64, 64, 64], [8, 64, 56, 56], [2, 64, 256, 256]] {
        let x = var(&dims, "x")?;
        let shown = dims.map(|side| side.to_string()).join(",");
        let mut upstream = Upstream::default();
        bench.case(
            Case::new(
                &format!("batch norm + relu {shown} forward + backward"),
                json!({ "kind": "operation", "name": "batch norm", "x": dims }),
            ),
            || {
                let (x, scale, shift) = (x.as_tensor(), scale.as_tensor(), shift.as_tensor());
                upstream.run(|| Ok(batch_norm_train(x, scale, shift, None, 1e-5, Activation::Relu)?))
            },
        )?;
    }
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "prelu 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "prelu", "x": [4, 64, 64, 64] }),
        ),
        || upstream.run(|| Ok(prelu(x.as_tensor(), scale.as_tensor())?)),
    )?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "max pool 3x3/2 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "max pool", "x": [4, 64, 64, 64] }),
        ),
        || upstream.run(|| Ok(max_pool2d(x.as_tensor(), window)?)),
    )?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "adaptive average pool 6x6 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "adaptive average pool", "x": [4, 64, 64, 64] }),
        ),
        || upstream.run(|| Ok(adaptive_avg_pool2d(x.as_tensor(), [6, 6])?)),
    )?;
    let logits = var(&[4, CLASSES, 32, 32], "logits")?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "bilinear 4,11,32,32→256,256 forward + backward",
            json!({ "kind": "operation", "name": "bilinear", "x": [4, CLASSES, 32, 32] }),
        ),
        || upstream.run(|| Ok(resize_bilinear(logits.as_tensor(), [256, 256], true)?)),
    )?;
    let full = var(&[4, CLASSES, 256, 256], "full")?;
    let labels = labels(4, [256, 256], CLASSES)?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "cross-entropy 4,11,256,256 forward + backward",
            json!({ "kind": "operation", "name": "cross-entropy", "x": [4, CLASSES, 256, 256] }),
        ),
        || {
            let options = CrossEntropyOptions { ignore_label: dsd_data::IGNORE, class_weights: None };
            upstream.run(|| Ok(cross_entropy(full.as_tensor(), &labels, options)?))
        },
    )?;
    Ok(())
}
