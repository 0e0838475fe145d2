//! Kernels and operations, and the random inputs of all groups.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use dsd_kernels::conv2d::{self, Conv2dShape};
use dsd_ops::{
    Activation, Conv2dOptions, CrossEntropyOptions, PoolOptions, adaptive_avg_pool2d, batch_norm_train, conv2d,
    cross_entropy, max_pool2d, prelu, resize_bilinear,
};
use dsd_random::Stream;
use serde_json::json;

use super::{Bench, Case};

const CLASSES: usize = 11;

/// Convolution shapes of the networks, as [N,C,H,W], K, kernel, stride, dilation, groups.
const CONVOLUTIONS: [([usize; 4], usize, usize, usize, usize, usize); 16] = [
    ([2, 64, 64, 64], 64, 3, 1, 1, 1),
    ([2, 128, 32, 32], 128, 3, 1, 1, 1),
    ([2, 256, 32, 32], 256, 3, 1, 2, 1),
    ([2, 512, 16, 16], 512, 3, 1, 1, 1),
    ([8, 64, 32, 32], 64, 3, 1, 1, 1),
    ([8, 128, 16, 16], 128, 3, 1, 1, 1),
    ([8, 256, 8, 8], 256, 3, 1, 1, 1),
    ([8, 64, 56, 56], 128, 3, 2, 1, 1),
    ([2, 3, 256, 256], 64, 3, 2, 1, 1),
    ([2, 3, 224, 224], 64, 7, 2, 1, 1),
    ([2, 256, 32, 32], 64, 1, 1, 1, 1),
    ([2, 64, 32, 32], 256, 1, 1, 1, 1),
    ([4, 128, 32, 32], 32, 1, 1, 1, 1),
    ([8, 96, 56, 56], 24, 1, 1, 1, 1),
    ([2, 96, 64, 64], 96, 3, 1, 1, 96),
    ([2, 96, 64, 64], 96, 3, 2, 1, 96),
];

/// Convolution kernels, the three passes of each shape.
pub(super) fn kernels(bench: &mut Bench) -> Result<()> {
    for (input, out_channels, kernel, stride, dilation, groups) in CONVOLUTIONS {
        let [batch, in_channels, in_height, in_width] = input;
        let shape = Conv2dShape {
            batch,
            in_channels,
            in_height,
            in_width,
            out_channels,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [dilation * (kernel / 2); 2],
            extra_padding: [0, 0],
            dilation: [dilation; 2],
            groups,
        };
        let (height, width) = (shape.out_height(), shape.out_width());
        let x = random(input.iter().product(), "x");
        let weight = random(out_channels * in_channels / groups * kernel * kernel, "weight");
        let grad = random(batch * out_channels * height * width, "grad");
        let mut y = vec![0.0; grad.len()];
        let mut grad_x = vec![0.0; x.len()];
        let mut grad_weight = vec![0.0; weight.len()];
        let work = 2.0 * (grad.len() * in_channels / groups * kernel * kernel) as f64;
        let name = format!(
            "{batch},{in_channels},{in_height},{in_width}→{out_channels} {kernel}x{kernel}/{stride} d{dilation} g{groups}"
        );
        let peer = |pass: &str| {
            json!({
                "kind": "convolution", "pass": pass, "x": input, "out_channels": out_channels, "kernel": kernel,
                "stride": stride, "padding": dilation * (kernel / 2), "dilation": dilation, "groups": groups,
            })
        };
        let wrap = |error: dsd_kernels::Error| crate::Error::Ops(error.into());
        bench.case(Case { work, ..Case::new(&format!("conv {name} forward"), peer("forward")) }, || {
            conv2d::forward(&shape, &x, &weight, None, &mut y).map_err(wrap).map(|()| None)
        })?;
        bench.case(Case { work, ..Case::new(&format!("conv {name} grad x"), peer("grad x")) }, || {
            conv2d::backward_input(&shape, &weight, &grad, &mut grad_x).map_err(wrap).map(|()| None)
        })?;
        bench.case(Case { work, ..Case::new(&format!("conv {name} grad w"), peer("grad w")) }, || {
            conv2d::backward_weight(&shape, &x, &grad, &mut grad_weight).map_err(wrap).map(|()| None)
        })?;
    }
    Ok(())
}

/// Operations with their graph, forward and backward.
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
        || upstream.backward(&conv2d(x.as_tensor(), weight.as_tensor(), None, convolution)?),
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
                upstream.backward(&batch_norm_train(x, scale, shift, None, 1e-5, Activation::Relu)?)
            },
        )?;
    }
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "prelu 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "prelu", "x": [4, 64, 64, 64] }),
        ),
        || upstream.backward(&prelu(x.as_tensor(), scale.as_tensor())?),
    )?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "max pool 3x3/2 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "max pool", "x": [4, 64, 64, 64] }),
        ),
        || upstream.backward(&max_pool2d(x.as_tensor(), window)?),
    )?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "adaptive average pool 6x6 4,64,64,64 forward + backward",
            json!({ "kind": "operation", "name": "adaptive average pool", "x": [4, 64, 64, 64] }),
        ),
        || upstream.backward(&adaptive_avg_pool2d(x.as_tensor(), [6, 6])?),
    )?;
    let logits = var(&[4, CLASSES, 32, 32], "logits")?;
    let mut upstream = Upstream::default();
    bench.case(
        Case::new(
            "bilinear 4,11,32,32→256,256 forward + backward",
            json!({ "kind": "operation", "name": "bilinear", "x": [4, CLASSES, 32, 32] }),
        ),
        || upstream.backward(&resize_bilinear(logits.as_tensor(), [256, 256], true)?),
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
            let loss = cross_entropy(
                full.as_tensor(),
                &labels,
                CrossEntropyOptions { ignore_label: dsd_data::IGNORE, class_weights: None },
            )?;
            upstream.backward(&loss)
        },
    )?;
    Ok(())
}

fn random(count: usize, purpose: &str) -> Vec<f32> {
    let mut stream = Stream::new(1, purpose, 0, 0);
    (0..count).map(|_| stream.normal() as f32).collect()
}

pub(super) fn tensor(dims: &[usize], purpose: &str) -> crate::Result<Tensor> {
    Ok(Tensor::from_vec(random(dims.iter().product(), purpose), dims, &Device::Cpu)?)
}

pub(super) fn var(dims: &[usize], purpose: &str) -> crate::Result<Var> {
    Ok(Var::from_tensor(&tensor(dims, purpose)?)?)
}

pub(super) fn labels(count: usize, [height, width]: [usize; 2], classes: usize) -> crate::Result<Tensor> {
    let mut stream = Stream::new(1, "labels", 0, 0);
    let ids = (0..count * height * width).map(|_| stream.below(classes) as u8).collect();
    Ok(Tensor::from_vec(ids, (count, height, width), &Device::Cpu)?)
}

/// The value of a scalar of either precision.
pub(super) fn scalar(value: &Tensor) -> crate::Result<f64> {
    Ok(value.to_dtype(DType::F64)?.to_scalar()?)
}

/// A dense random gradient for an output, made in the first run and kept.
#[derive(Default)]
pub(super) struct Upstream(Option<Tensor>);

impl Upstream {
    /// Backward from the output with this gradient; a scalar gets 1, and is returned.
    pub(super) fn backward(&mut self, output: &Tensor) -> crate::Result<Option<f64>> {
        if output.rank() == 0 {
            output.backward()?;
            return Ok(Some(scalar(output)?));
        }
        let gradient = match &self.0 {
            Some(gradient) => gradient.clone(),
            None => self.0.insert(tensor(output.dims(), "gradient")?).clone(),
        };
        (output * gradient)?.sum_all()?.backward()?;
        Ok(None)
    }
}
