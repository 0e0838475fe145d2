//! Values and gradients against PyTorch's: tests/reference/ops.safetensors, made by the script beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use dsd_ops::{
    Activation, Conv2dOptions, ConvTranspose2dOptions, CrossEntropyOptions, PoolOptions, RunningStatistics,
    adaptive_avg_pool2d, add_relu, avg_pool2d, batch_norm_eval, batch_norm_prelu_eval, batch_norm_prelu_train,
    batch_norm_train, conv_transpose2d, conv2d, cross_entropy, hard_sigmoid, hard_swish, log_softmax_channels,
    max_pool2d, max_pool2d_with_indices, max_unpool2d, prelu, relu, relu6, resize_bilinear, resize_nearest,
    scale_channels, sigmoid, softmax_channels,
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::inputs::{Tolerance, compare, report, values};

const CASES: usize = 123;
const DOUBLE: Tolerance = Tolerance { absolute: 1e-12, relative: 1e-10, of_largest: 0.0 };
const SINGLE: Tolerance = Tolerance { absolute: 1e-7, relative: 1e-4, of_largest: 1e-5 };

/// The tensors and settings of one case.
struct Reference<'a> {
    name: &'a str,
    settings: &'a Value,
    tensors: BTreeMap<&'a str, Tensor>,
}

impl Reference<'_> {
    /// A constant tensor, floats in the type of the run.
    fn constant(&self, name: &str, dtype: DType) -> Tensor {
        let tensor = &self.tensors[name];
        if tensor.dtype() == DType::F64 { tensor.to_dtype(dtype).unwrap() } else { tensor.clone() }
    }

    fn usize(&self, name: &str) -> usize {
        self.settings[name].as_u64().unwrap_or_else(|| panic!("{}: {name}", self.name)) as usize
    }

    fn f64(&self, name: &str) -> f64 {
        self.settings[name].as_f64().unwrap_or_else(|| panic!("{}: {name}", self.name))
    }

    fn bool(&self, name: &str) -> bool {
        self.settings[name].as_bool().unwrap_or_else(|| panic!("{}: {name}", self.name))
    }

    fn pair(&self, name: &str) -> [usize; 2] {
        let item =
            |index: usize| self.settings[name][index].as_u64().unwrap_or_else(|| panic!("{}: {name}", self.name));
        [item(0) as usize, item(1) as usize]
    }

    fn pool(&self) -> PoolOptions {
        PoolOptions {
            kernel: self.pair("kernel"),
            stride: self.pair("stride"),
            padding: self.pair("padding"),
            ceil_mode: self.bool("ceil_mode"),
        }
    }

    fn activation(&self) -> Activation {
        match self.settings["activation"].as_str() {
            Some("identity") => Activation::Identity,
            Some("relu") => Activation::Relu,
            Some("relu6") => Activation::Relu6,
            Some("hard_swish") => Activation::HardSwish,
            other => panic!("{}: activation {other:?}", self.name),
        }
    }

    /// Runs the operation on the arguments (by name), and compares what it leaves besides its output.
    fn run(&self, t: &BTreeMap<&str, Tensor>, dtype: DType, failures: &mut Vec<String>) -> dsd_ops::Result<Tensor> {
        let (x, weight, bias) = (&t["x"], t.get("weight"), t.get("bias"));
        match self.settings["op"].as_str().unwrap() {
            "conv2d" => {
                let options = Conv2dOptions {
                    stride: self.pair("stride"),
                    padding: self.pair("padding"),
                    extra_padding: self.pair("extra_padding"),
                    dilation: self.pair("dilation"),
                    groups: self.usize("groups"),
                };
                conv2d(x, weight.unwrap(), bias, options)
            }
            "conv_transpose2d" => {
                let options = ConvTranspose2dOptions {
                    stride: self.pair("stride"),
                    padding: self.pair("padding"),
                    output_padding: self.pair("output_padding"),
                    dilation: self.pair("dilation"),
                    groups: self.usize("groups"),
                };
                conv_transpose2d(x, weight.unwrap(), bias, options)
            }
            "max_pool2d" => {
                let (y, indices) = max_pool2d_with_indices(x, self.pool())?;
                let what = format!("{}: indices", self.name);
                failures.extend(compare(&what, &indices, &self.tensors["indices"], Tolerance::default()).err());
                let what = format!("{}: max_pool2d and max_pool2d_with_indices", self.name);
                failures.extend(compare(&what, &max_pool2d(x, self.pool())?, &y, Tolerance::default()).err());
                Ok(y)
            }
            "max_unpool2d" => max_unpool2d(x, &self.constant("indices", dtype), self.pair("size")),
            "avg_pool2d" => avg_pool2d(x, self.pool(), self.bool("count_include_pad")),
            "adaptive_avg_pool2d" => adaptive_avg_pool2d(x, self.pair("size")),
            "resize_bilinear" => resize_bilinear(x, self.pair("size"), self.bool("align_corners")),
            "resize_nearest" => resize_nearest(x, self.pair("size")),
            "batch_norm_train" | "batch_norm_prelu_train" => {
                // The running statistics are updated in place: work on copies.
                let copy = |name| self.constant(name, dtype).copy();
                let (mean, var) = (copy("running_mean")?, copy("running_var")?);
                let running = Some(RunningStatistics { mean: &mean, var: &var, momentum: self.f64("momentum") });
                let (weight, bias, eps) = (weight.unwrap(), bias.unwrap(), self.f64("eps"));
                let y = match t.get("slopes") {
                    Some(slopes) => batch_norm_prelu_train(x, weight, bias, slopes, running, eps)?,
                    None => batch_norm_train(x, weight, bias, running, eps, self.activation())?,
                };
                for (name, got) in [("new_running_mean", &mean), ("new_running_var", &var)] {
                    let what = format!("{} {}: {name}", self.name, dtype.as_str());
                    failures.extend(compare(&what, got, &self.tensors[name], tolerance(dtype)).err());
                }
                Ok(y)
            }
            "batch_norm_eval" | "batch_norm_prelu_eval" => {
                let (mean, var) = (self.constant("running_mean", dtype), self.constant("running_var", dtype));
                let (weight, bias, eps) = (weight.unwrap(), bias.unwrap(), self.f64("eps"));
                match t.get("slopes") {
                    Some(slopes) => batch_norm_prelu_eval(x, weight, bias, slopes, &mean, &var, eps),
                    None => batch_norm_eval(x, weight, bias, &mean, &var, eps, self.activation()),
                }
            }
            "relu" => relu(x),
            "relu6" => relu6(x),
            "hard_swish" => hard_swish(x),
            "hard_sigmoid" => hard_sigmoid(x),
            "sigmoid" => sigmoid(x),
            "add_relu" => add_relu(x, &t["other"]),
            "scale_channels" => scale_channels(x, &t["scale"]),
            "prelu" => prelu(x, weight.unwrap()),
            "softmax_channels" => softmax_channels(x),
            "log_softmax_channels" => log_softmax_channels(x),
            "cross_entropy" => {
                let class_weights: Option<Vec<f64>> = self.settings["class_weights"]
                    .as_array()
                    .map(|weights| weights.iter().map(|weight| weight.as_f64().unwrap()).collect());
                let ignore_label = self.usize("ignore_label") as u8;
                let options = CrossEntropyOptions { ignore_label, class_weights: class_weights.as_deref() };
                cross_entropy(x, &self.constant("labels", dtype), options)
            }
            other => panic!("{}: unknown operation {other}", self.name),
        }
    }

    /// Everything that differs from the file, when computed in `dtype`.
    fn differences(&self, dtype: DType) -> Vec<String> {
        let mut failures = Vec::new();
        let variables: BTreeMap<&str, Var> = self
            .tensors
            .keys()
            .filter_map(|key| key.strip_prefix("grad_"))
            .map(|name| (name, Var::from_tensor(&self.constant(name, dtype)).unwrap()))
            .collect();
        let arguments = variables.iter().map(|(&name, variable)| (name, variable.as_tensor().clone())).collect();
        let y = match self.run(&arguments, dtype, &mut failures) {
            Ok(y) => y,
            Err(error) => return vec![format!("{} {}: {error}", self.name, dtype.as_str())],
        };
        let mut check = |what: &str, got: &Tensor, expected: &str| {
            let what = format!("{} {}: {what}", self.name, dtype.as_str());
            assert_eq!(got.dtype(), dtype, "{what}");
            failures.extend(compare(&what, got, &self.tensors[expected], tolerance(dtype)).err());
        };
        check("output", &y, "y");
        let cotangent = self.constant("cotangent", dtype);
        let gradients = (y * cotangent).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{}: no gradient of {name}", self.name));
            check(&format!("gradient of {name}"), gradient, &format!("grad_{name}"));
        }
        failures
    }
}

fn tolerance(dtype: DType) -> Tolerance {
    if dtype == DType::F64 { DOUBLE } else { SINGLE }
}

fn tensor(file: &SafeTensors, name: &str) -> Tensor {
    let view = file.tensor(name).unwrap();
    let bytes = view.data();
    match view.dtype() {
        safetensors::Dtype::F64 => Tensor::from_raw_buffer(bytes, DType::F64, view.shape(), &Device::Cpu),
        safetensors::Dtype::U8 => Tensor::from_raw_buffer(bytes, DType::U8, view.shape(), &Device::Cpu),
        // Indices are non-negative: the same bits.
        safetensors::Dtype::I32 => Tensor::from_raw_buffer(bytes, DType::U32, view.shape(), &Device::Cpu),
        other => panic!("{name}: {other:?}"),
    }
    .unwrap()
}

#[test]
fn values_and_gradients_equal_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/ops.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let reference: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["reference"]).unwrap();
    let settings = reference["cases"].as_object().unwrap();
    println!("PyTorch {}, seed {}", reference["torch"], reference["seed"]);
    assert_eq!(settings.len(), CASES, "cases were added or lost: change CASES");

    let names = file.names();
    let mut failures = Vec::new();
    let mut operations = BTreeSet::new();
    for (name, settings) in settings {
        let prefix = format!("{name}/");
        let tensors: BTreeMap<&str, Tensor> = names
            .iter()
            .filter_map(|full| full.strip_prefix(&prefix).map(|short| (short, tensor(&file, full))))
            .collect();
        let case = Reference { name, settings, tensors };
        operations.insert(settings["op"].as_str().unwrap());
        failures.extend(case.differences(DType::F64));
        failures.extend(case.differences(DType::F32));
    }
    println!("operations: {operations:?}");
    assert_eq!(operations.len(), 23, "{operations:?}");
    report("comparisons with PyTorch in f64 and f32", 2 * CASES, &failures);
    println!("figure N3 operation_cases {CASES} in f64 and f32");
    assert!(values(&tensor(&file, "conv2d_3x3/x")).iter().any(|x| *x != 0.0));
}
