//! Convolution kernels: the three passes of each shape, and each algorithm with its error.

use std::collections::BTreeMap;

use anyhow::Result;
use dsd_kernels::conv2d::{self, Algorithm, Conv2dShape};
use dsd_models::{Convolution, convolutions};
use serde_json::json;

use super::inputs::random;
use super::{Bench, Case, networks};

/// Shapes on which algorithms differ, as [N,C,H,W], K, kernel, stride, dilation, groups.
const SHAPES: [([usize; 4], usize, usize, usize, usize, usize); 16] = [
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

/// A pass of a convolution.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Forward,
    GradX,
    GradW,
}

impl Pass {
    const ALL: [Self; 3] = [Self::Forward, Self::GradX, Self::GradW];

    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::GradX => "grad x",
            Self::GradW => "grad w",
        }
    }
}

/// Random inputs of a convolution and a place for what a pass gives.
struct Data {
    shape: Conv2dShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    grad: Vec<f32>,
    y: Vec<f32>,
    grad_x: Vec<f32>,
    grad_weight: Vec<f32>,
}

impl Data {
    fn new(shape: Conv2dShape) -> Self {
        let [x, weight, grad] = [shape.input_len(), shape.weight_len(), shape.output_len()];
        Self {
            shape,
            x: random(x, "x"),
            weight: random(weight, "weight"),
            grad: random(grad, "grad"),
            y: vec![0.0; grad],
            grad_x: vec![0.0; x],
            grad_weight: vec![0.0; weight],
        }
    }

    /// Runs a pass by the algorithm that the shape gets.
    fn run(&mut self, pass: Pass) -> crate::Result<()> {
        let Self { shape, x, weight, grad, y, grad_x, grad_weight } = self;
        match pass {
            Pass::Forward => conv2d::forward(shape, x, weight, None, y),
            Pass::GradX => conv2d::backward_input(shape, weight, grad, grad_x),
            Pass::GradW => conv2d::backward_weight(shape, x, grad, grad_weight),
        }
        .map_err(wrap)
    }

    /// Runs a pass by this algorithm.
    fn run_with(&mut self, algorithm: Algorithm, pass: Pass) -> dsd_kernels::Result<()> {
        let Self { shape, x, weight, grad, y, grad_x, grad_weight } = self;
        match pass {
            Pass::Forward => conv2d::forward_with(algorithm, shape, x, weight, None, y),
            Pass::GradX => conv2d::backward_input_with(algorithm, shape, weight, grad, grad_x),
            Pass::GradW => conv2d::backward_weight_with(algorithm, shape, x, grad, grad_weight),
        }
    }

    /// What the last run of a pass gave.
    fn result(&self, pass: Pass) -> &[f32] {
        match pass {
            Pass::Forward => &self.y,
            Pass::GradX => &self.grad_x,
            Pass::GradW => &self.grad_weight,
        }
    }

    /// The pass in f64.
    fn exactly(&self, pass: Pass) -> crate::Result<Vec<f64>> {
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
        let mut result = vec![0.0; self.result(pass).len()];
        match pass {
            Pass::Forward => conv2d::forward(&self.shape, &wide(&self.x), &wide(&self.weight), None, &mut result),
            Pass::GradX => conv2d::backward_input(&self.shape, &wide(&self.weight), &wide(&self.grad), &mut result),
            Pass::GradW => conv2d::backward_weight(&self.shape, &wide(&self.x), &wide(&self.grad), &mut result),
        }
        .map_err(wrap)?;
        Ok(result)
    }

    /// The greatest difference of the last run from the pass in f64, over the greatest value.
    fn error(&self, pass: Pass, exact: &[f64]) -> f64 {
        let greatest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0f64, |most, value| most.max(value.abs()));
        let differences =
            greatest(&mut self.result(pass).iter().zip(exact).map(|(own, exact)| f64::from(*own) - exact));
        differences / greatest(&mut exact.iter().copied())
    }
}

fn wrap(error: dsd_kernels::Error) -> crate::Error {
    crate::Error::Ops(error.into())
}

fn listed() -> Result<Vec<Conv2dShape>> {
    let mut shapes = Vec::with_capacity(SHAPES.len());
    for (input, out_channels, kernel, stride, dilation, groups) in SHAPES {
        let plain = Conv2dShape::new(input, out_channels, [kernel; 2]).map_err(wrap)?;
        let padding = [dilation * (kernel / 2); 2];
        shapes.push(Conv2dShape { stride: [stride; 2], padding, dilation: [dilation; 2], groups, ..plain });
    }
    Ok(shapes)
}

/// What stands for all networks in place of a name.
const ALL: &str = "all";

/// The different convolutions of a network, or of all, and how often there is each.
fn of_network(bench: &Bench, name: &str) -> Result<Vec<(Conv2dShape, usize)>> {
    let mut met: Vec<(Convolution, usize)> = Vec::new();
    let [height, width] = bench.size.unwrap_or(networks::STEP);
    let names: Vec<&str> =
        if name == ALL { dsd_models::variants().iter().map(|variant| variant.name).collect() } else { vec![name] };
    for name in names {
        let config = dsd_models::variant(name).ok_or_else(|| dsd_models::Error::unknown_variant(name))?;
        for convolution in convolutions(&config, networks::CLASSES, [bench.batch, height, width])? {
            match met.iter_mut().find(|(other, _)| *other == convolution) {
                Some((_, times)) => *times += 1,
                None => met.push((convolution, 1)),
            }
        }
    }
    let shape = |Convolution { input, output, kernel, options }: Convolution| Conv2dShape {
        batch: input[0],
        in_channels: input[1],
        in_height: input[2],
        in_width: input[3],
        out_channels: output[1],
        kernel,
        stride: options.stride,
        padding: options.padding,
        extra_padding: options.extra_padding,
        dilation: options.dilation,
        groups: options.groups,
    };
    Ok(met.into_iter().map(|(convolution, times)| (shape(convolution), times)).collect())
}

fn shown(shape: &Conv2dShape) -> String {
    let Conv2dShape { batch, in_channels, in_height, in_width, out_channels, kernel, stride, dilation, groups, .. } =
        shape;
    let ([down, across], [stride, _], [dilation, _]) = (kernel, stride, dilation);
    format!(
        "{batch},{in_channels},{in_height},{in_width}→{out_channels} {down}x{across}/{stride} d{dilation} g{groups}"
    )
}

/// The three passes of each shape; of a network's shapes, where one was asked for.
pub(super) fn kernels(bench: &mut Bench) -> Result<()> {
    let shapes = match bench.network.clone() {
        Some(name) => of_network(bench, &name)?,
        None => listed()?.into_iter().map(|shape| (shape, 1)).collect(),
    };
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for (shape, times) in shapes {
        let name = shown(&shape);
        let mut data = Data::new(shape);
        for pass in Pass::ALL {
            let peer = json!({
                "kind": "convolution", "pass": pass.name(), "out_channels": shape.out_channels, "kernel": shape.kernel,
                // PyTorch pads both sides alike: what one side gets more is part of its image.
                "x": [shape.batch, shape.in_channels, shape.in_height + shape.extra_padding[0],
                      shape.in_width + shape.extra_padding[1]],
                "stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, "groups": shape.groups,
            });
            let case = format!("conv {name} {}", pass.name());
            let bytes = 4.0 * (shape.input_len() + shape.weight_len() + shape.output_len()) as f64;
            let case = Case { work: shape.flops(), bytes, times, ..Case::new(&case, peer) };
            let before = bench.rows.len();
            bench.case(case, || data.run(pass).map(|()| None))?;
            for row in &bench.rows[before..] {
                let sum = sums.entry((kind(&shape), pass.name())).or_default();
                sum.ours += row.ours_ms * times as f64;
                sum.theirs = sum.theirs.zip(row.peer_ms).map(|(sum, ms)| sum + ms * times as f64);
                sum.work += shape.flops() * times as f64;
            }
        }
    }
    if let Some(network) = bench.network.clone() {
        for ((kind, pass), Sum { ours, theirs, work }) in sums {
            bench.sum(format!("{network}, all {kind} {pass}"), ours, theirs, work)?;
        }
    }
    Ok(())
}

/// What all convolutions of one kind take in one pass over a network.
struct Sum {
    ours: f64,
    theirs: Option<f64>,
    work: f64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { ours: 0.0, theirs: Some(0.0), work: 0.0 }
    }
}

fn kind(shape: &Conv2dShape) -> &'static str {
    match shape {
        _ if shape.groups == shape.in_channels && shape.groups > 1 => "depthwise",
        _ if shape.kernel == [1, 1] => "1x1",
        _ if shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.groups == 1 => "dense 3x3/1",
        _ => "other",
    }
}

/// Each algorithm that can compute a shape: its time, and its error on inputs of mean zero and after a ReLU.
pub(super) fn algorithms(bench: &mut Bench) -> Result<()> {
    for shape in listed()? {
        let name = shown(&shape);
        for pass in Pass::ALL {
            if !bench.wants(&format!("{name} {}", pass.name())) {
                continue;
            }
            let mut data = Data::new(shape);
            let exact = data.exactly(pass)?;
            let mut rectified = Data::new(shape);
            for values in [&mut rectified.x, &mut rectified.grad] {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            let rectified_exact = rectified.exactly(pass)?;
            for algorithm in [
                Algorithm::Gemm,
                Algorithm::TapByTap,
                Algorithm::Depthwise,
                Algorithm::WinogradF2,
                Algorithm::WinogradF4,
                Algorithm::WinogradPairs,
            ] {
                if data.run_with(algorithm, pass).is_err() {
                    continue; // It cannot compute this shape.
                }
                rectified.run_with(algorithm, pass).map_err(wrap)?;
                let errors = [data.error(pass, &exact), rectified.error(pass, &rectified_exact)];
                let case = format!("{name} {} {algorithm:?}", pass.name());
                let case =
                    Case { work: shape.flops(), errors: Some(errors), ..Case::new(&case, serde_json::Value::Null) };
                bench.case(case, || data.run_with(algorithm, pass).map_err(wrap).map(|()| None))?;
            }
        }
    }
    Ok(())
}
