//! Networks at their published width and those of other people, with the same weights, compute the same.
//!
//! `tests/reference/equality.py` made the numbers in f64. Here a row is computed as in training, in f32 by the fast kernels,
//! or, where rounding alone moves values across kinks, in f64 by the plain ones; the row says which. The weights are given
//! to [`weights::load`] under the names that they have there. The table is printed by `cargo xtask equality`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use dsd_models::weights::{self, Part};
use dsd_models::{Mode, ModelConfig, Output, ParamStore, build, multiply_adds, parameter_count};
use dsd_random::name_hash;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;

const REFERENCE: &str = include_str!("../reference/equality.json");
const NUMBERS: &[u8] = include_bytes!("../reference/equality.safetensors");
const ROWS: usize = 24;
/// |difference| over 1 + |value|.
const LOGITS: f64 = 1e-4;
/// Of a parameter's gradient: norm of the difference over the norm.
const GRADIENT: f64 = 1e-3;
const MULTIPLY_ADDS: f64 = 0.01;
/// Norm and projections on vectors of signs.
const CHECKS: usize = 5;
/// Of the largest gradient: below this a gradient is zero in theory.
const ZERO: f64 = 1e-10;
/// Values of each output.
const SAMPLES: usize = 32;

#[derive(Deserialize)]
struct Reference {
    counted_size: [usize; 2],
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    network: String,
    oracle: String,
    config: ModelConfig,
    classes: usize,
    size: [usize; 2],
    /// In which our side is computed.
    precision: Precision,
    /// Whether every fourth channel is mostly below zero.
    negative: bool,
    multiply_adds: u64,
    parameters: usize,
    layers: Vec<String>,
    modes: BTreeMap<String, ModeReference>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    F64,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

#[derive(Deserialize)]
struct ModeReference {
    outputs: Vec<String>,
    /// How far PyTorch in f32 is from PyTorch in f64: logits, worst gradient.
    float32: [f64; 2],
}

/// 53 random bits for each index, that belong to a name: SplitMix64 from the hash of the name.
fn bits(name: &str, count: usize) -> impl Iterator<Item = u64> + use<> {
    let key = name_hash(name);
    (1..=count as u64).map(move |index| {
        let mut z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 11
    })
}

/// Numbers in [-1, 1).
fn signed(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    bits(name, count).map(|bits| 2.0 * (bits as f64 / (1u64 << 53) as f64) - 1.0)
}

/// Rounded to f32 in either precision.
fn tensor(values: impl Iterator<Item = f64>, shape: &[usize], precision: Precision) -> Tensor {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(precision.dtype()).unwrap()
}

/// Each image has a contrast of its own, so that averages over whole images differ.
fn images(count: usize, [height, width]: [usize; 2], precision: Precision) -> Tensor {
    let plane = 3 * height * width;
    let values = signed("images", 3 * plane).take(count * plane).enumerate();
    let values = values.map(|(index, value)| value * (index / plane + 1) as f64 * 0.5);
    tensor(values, &[count, 3, height, width], precision)
}

/// Weights for which f32 is near f64: few values lie so near to a kink that rounding moves them across.
fn weights(name: &str, shape: &[usize], negative: bool) -> Vec<f32> {
    let fan: usize = shape[1..].iter().product();
    let scale = (3.0 / fan as f64).sqrt();
    let matrix = shape.len() >= 2;
    let value = |(index, value): (usize, f64)| match name.rsplit('.').next() {
        _ if matrix => value * scale,
        Some("bias") if negative && index % 4 == 3 => -2.0 - 0.5 * value,
        Some("bias") => 2.0 + 0.5 * value,
        Some("running_mean") => value,
        Some("running_var") => 1.0 + 0.5 * value,
        _ => 0.375 + 0.125 * value,
    };
    signed(name, shape.iter().product()).enumerate().map(|x| value(x) as f32).collect()
}

/// A row's tensors by their names there: a line for each layer says which it has, its name, the shape of its weight.
fn source(row: &Row) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for line in &row.layers {
        let mut words = line.split(' ');
        let (kinds, layer) = (words.next().unwrap(), words.next().unwrap());
        let shape: Vec<usize> = words.map(|side| side.parse().unwrap()).collect();
        for kind in kinds.chars() {
            let (name, shape) = match kind {
                'w' => ("weight", shape.clone()),
                'b' => ("bias", vec![shape[0]]),
                'm' => ("running_mean", vec![shape[0]]),
                'v' => ("running_var", vec![shape[0]]),
                other => panic!("a tensor of kind {other}"),
            };
            tensors.push((format!("{layer}.{name}"), shape));
        }
    }
    tensors
}

fn write(row: &Row, path: &Path) {
    let tensors = source(row);
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| weights(name, shape, row.negative).into_iter().flat_map(f32::to_le_bytes).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn checks(name: &str, values: &[f64]) -> [f64; CHECKS] {
    let mut sums = [0.0; CHECKS];
    for (bits, &value) in bits(&format!("signs of {name}"), values.len()).zip(values) {
        sums[0] += value * value;
        for (sign, sum) in sums[1..].iter_mut().enumerate() {
            *sum += if (bits >> sign) & 1 == 1 { -value } else { value };
        }
    }
    sums[0] = sums[0].sqrt();
    sums
}

/// An estimate of the norm of the difference: its projections on vectors of signs have that deviation.
fn difference(got: &[f64], expected: &[f64]) -> f64 {
    let projections = got[1..].iter().zip(&expected[1..]);
    let deviation = (projections.map(|(a, b)| (a - b).powi(2)).sum::<f64>() / (CHECKS - 1) as f64).sqrt();
    deviation.max((got[0] - expected[0]).abs())
}

/// What a gradient's difference is held against: its norm. Where the sums in a gradient cancel, rounding leaves more of
/// them, so one below a hundredth of the median is held against that, and one that is zero in theory (a shift before a
/// convolution that is normalised) against the median.
fn scales(expected: &[f64]) -> Vec<f64> {
    let norms: Vec<f64> = expected.iter().copied().step_by(CHECKS).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f64::total_cmp);
    let (median, largest) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    norms.into_iter().map(|norm| if norm > ZERO * largest { norm.max(median / 100.0) } else { median }).collect()
}

/// The worst of a mode.
struct Distance {
    logits: f64,
    gradient: f64,
    /// Whose gradient that is.
    parameter: String,
}

struct Network<'a> {
    index: usize,
    row: &'a Row,
    store: ParamStore,
    network: Box<dyn dsd_models::Segmenter>,
    /// Our name of a tensor by theirs.
    ours: BTreeMap<String, String>,
}

impl<'a> Network<'a> {
    fn new(index: usize, row: &'a Row, folder: &Path) -> Self {
        let path = folder.join("weights.safetensors");
        write(row, &path);
        let pretrained = weights::load(path.to_str().unwrap(), &row.config, row.classes, Part::Everything)
            .unwrap_or_else(|error| panic!("{}: {error}", row.network));
        let store = ParamStore::new(0, row.precision.dtype(), &Device::Cpu);
        let network = build(&row.config, row.classes, store.builder()).unwrap();
        store.apply(&pretrained.tensors).unwrap();
        let ours = pretrained.report.matched.into_iter().map(|(ours, theirs)| (theirs, ours)).collect();
        Self { index, row, store, network, ours }
    }

    fn distance(&self, mode_name: &str, reference: &ModeReference, numbers: &SafeTensors) -> Distance {
        let (count, mode) = match mode_name {
            "eval" => (2, Mode::Eval),
            "train" => (3, Mode::Train { seed: 0, step: 0 }),
            other => panic!("a mode {other}"),
        };
        let Row { size, precision, .. } = *self.row;
        let Output { logits, aux_logits, .. } = self.network.forward(&images(count, size, precision), mode).unwrap();
        let mut loss: Option<Tensor> = None;
        let mut worst = Distance { logits: 0.0, gradient: 0.0, parameter: String::new() };
        assert_eq!(reference.outputs.len(), 1 + usize::from(aux_logits.is_some()), "{}", self.row.network);
        for (name, output) in reference.outputs.iter().zip([Some(logits), aux_logits].into_iter().flatten()) {
            let expected = self.numbers(numbers, mode_name, name);
            let got = values(&output);
            worst.logits = worst.logits.max(difference(&checks(name, &got), &expected[..CHECKS]) / expected[0]);
            let step = (got.len() / SAMPLES).max(1);
            for (&got, expected) in got.iter().step_by(step).zip(&expected[CHECKS..]) {
                worst.logits = worst.logits.max((got - expected).abs() / (1.0 + expected.abs()));
            }
            let cotangent = signed(&format!("cotangent of {name}"), output.elem_count());
            let term = (&output * tensor(cotangent, output.dims(), precision)).unwrap().sum_all().unwrap();
            loss = Some(match loss {
                Some(loss) => (loss + term).unwrap(),
                None => term,
            });
        }
        let gradients = loss.unwrap().backward().unwrap();
        let parameters: BTreeMap<_, _> =
            self.store.parameters().into_iter().map(|parameter| (parameter.name, parameter.var)).collect();
        let expected = self.numbers(numbers, mode_name, "gradients");
        let tensors = source(self.row);
        let trained = tensors.iter().filter(|(name, _)| !name.contains(".running_"));
        let mut compared = 0;
        let scales = scales(&expected);
        for (((name, _), expected), scale) in trained.zip(expected.chunks_exact(CHECKS)).zip(scales) {
            let gradient = values(gradients.get(&parameters[&self.ours[name]]).unwrap());
            let distance = difference(&checks(name, &gradient), expected) / scale;
            // What is no number is the worst of all.
            if distance > worst.gradient || distance.is_nan() {
                worst = Distance { gradient: distance, parameter: name.clone(), ..worst };
            }
            compared += 1;
        }
        assert_eq!((compared, CHECKS * compared), (parameters.len(), expected.len()), "{}", self.row.network);
        worst
    }

    fn numbers(&self, numbers: &SafeTensors, mode: &str, name: &str) -> Vec<f64> {
        let stored = numbers.tensor(&format!("{}.{mode}.{name}", self.index)).unwrap();
        let (values, rest) = stored.data().as_chunks();
        assert!(rest.is_empty());
        values.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    }
}

#[test]
fn networks_are_equal_to_other_implementations() {
    let reference: Reference = serde_json::from_str(REFERENCE).unwrap();
    let numbers = SafeTensors::deserialize(NUMBERS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    println!(
        "| network | compared with | ours in | mode | logits | gradient | PyTorch f32: logits | gradient | parameters | multiply-adds |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (index, row) in reference.rows.iter().enumerate() {
        let Row { network, oracle, config, classes, precision, .. } = row;
        let parameters = parameter_count(config, *classes).unwrap();
        let counted = multiply_adds(config, *classes, reference.counted_size).unwrap();
        let ratio = counted as f64 / row.multiply_adds as f64;
        if parameters != row.parameters || (ratio - 1.0).abs() > MULTIPLY_ADDS {
            faults.push(format!("{network}: {parameters} parameters of {}, {ratio} of multiply-adds", row.parameters));
        }
        let ours = Network::new(index, row, folder.path());
        assert_eq!(row.modes.len(), 2);
        for (mode, reference) in &row.modes {
            let Distance { logits, gradient, parameter } = ours.distance(mode, reference, &numbers);
            let [logits32, gradient32] = reference.float32;
            println!(
                "| {network} | {oracle} | {} | {mode} | {logits:.1e} | {gradient:.1e} | {logits32:.1e} | {gradient32:.1e} | {parameters} | {:.3} G |",
                precision.dtype().as_str(),
                counted as f64 / 1e9
            );
            // Not `>`: what is no number is a fault.
            if !(logits <= LOGITS && gradient <= GRADIENT) {
                faults.push(format!("{network}, {mode}: logits {logits:.1e}, gradient {gradient:.1e} of {parameter}"));
            }
        }
    }
    assert_eq!(reference.rows.len(), ROWS);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    println!("figure N3 networks {ROWS} logits and gradients, training and evaluation mode");
}
