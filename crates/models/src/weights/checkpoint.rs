//! A file of named tensors whose values are looked at only when they are asked for: what is allocated follows from the
//! network, not from what the file says.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::weights::{torch, zip};
use crate::{Error, Result};

/// The element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// Anything that is no weight.
    Other,
}

impl Element {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other => 0,
        }
    }
}

/// Where a tensor is.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    shape: Vec<usize>,
    element: Element,
    /// Bytes of the file.
    range: Range<usize>,
    /// Distance of neighbours along each axis, in elements; none where the tensor is contiguous and fills the range.
    strides: Option<Vec<usize>>,
}

impl Entry {
    /// A tensor inside a storage that fills a range of the file; `offset` and `strides` are in elements.
    pub(crate) fn strided(
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        element: Element,
        storage: Range<usize>,
    ) -> std::result::Result<Self, String> {
        let beyond = || "it lies beyond its storage".to_string();
        if shape.len() != strides.len() {
            return Err("it has more sizes than strides".to_string());
        }
        let width = element.size();
        // The last element that is looked at, counted from the first.
        let reach = shape.iter().zip(&strides).try_fold(0usize, |reach, (&size, &stride)| {
            size.saturating_sub(1).checked_mul(stride).and_then(|step| reach.checked_add(step))
        });
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)).ok_or_else(beyond)?;
        let extent = if count == 0 { Some(0) } else { reach.and_then(|reach| reach.checked_add(1)) };
        let begin = offset.checked_mul(width).and_then(|skip| storage.start.checked_add(skip)).ok_or_else(beyond)?;
        let end = extent.and_then(|extent| extent.checked_mul(width)).and_then(|length| begin.checked_add(length));
        let range = begin..end.filter(|&end| end <= storage.end).ok_or_else(beyond)?;
        let mut dense = 1usize;
        let contiguous = shape.iter().zip(&strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == dense;
            dense = dense.saturating_mul(size);
            fits
        });
        Ok(Self { shape, element, range, strides: if contiguous { None } else { Some(strides) } })
    }
}

/// The named tensors of a file.
pub(crate) struct Checkpoint {
    origin: String,
    bytes: Vec<u8>,
    entries: BTreeMap<String, Entry>,
    /// Remarks on how they were found, a sentence each.
    pub(crate) notes: Vec<String>,
}

/// The longest header of a safetensors file that is parsed, in bytes: a network of 10 000 tensors has a tenth of it.
const LONGEST_HEADER: u64 = 16 << 20;
/// What wrappers and training programs put before all names.
const PREFIXES: [&str; 7] = ["module", "model", "network", "net", "state_dict", "student", "_orig_mod"];
/// How many of them may stand behind each other.
const MOST_PREFIXES: usize = 4;

impl Checkpoint {
    /// Recognises the format by its first bytes and reads names, shapes and places.
    pub(crate) fn parse(origin: &str, bytes: Vec<u8>) -> Result<Self> {
        let read = if zip::is_zip(&bytes) {
            torch::entries(&bytes)
        } else if torch::is_old_format(&bytes) {
            Err(format!(
                "the format that PyTorch wrote before version 1.6; convert it: python -c \"import torch; \
                 torch.save(torch.load('{origin}', map_location='cpu', weights_only=True), 'converted.pth')\""
            ))
        } else {
            safetensors_entries(&bytes).map(|entries| (entries, vec![]))
        };
        let (mut entries, mut notes) = read.map_err(|message| Error::source(origin, message))?;
        for _ in 0..MOST_PREFIXES {
            let Some(prefix) = shared_prefix(&entries) else { break };
            notes.push(format!("the prefix {prefix:?} of all names was taken off"));
            let stripped = entries.into_iter().map(|(name, entry)| (name[prefix.len()..].to_string(), entry));
            entries = stripped.collect();
        }
        Ok(Self { origin: origin.to_string(), bytes, entries, notes })
    }

    /// Names and shapes without values.
    #[cfg(test)]
    pub(crate) fn of_shapes(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let entry = |shape| Entry { shape, element: Element::F32, range: 0..0, strides: None };
        let entries = shapes.into_iter().map(|(name, shape)| (name, entry(shape))).collect();
        Self { origin: String::new(), bytes: vec![], entries, notes: vec![] }
    }

    /// Names and shapes, sorted by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// The values of a tensor as f32.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        let fault = |message: &str| Error::source(&self.origin, format!("{name}: {message}"));
        let entry = self.entries.get(name).ok_or_else(|| fault("no such tensor"))?;
        let storage = self.bytes.get(entry.range.clone()).ok_or_else(|| fault("it lies beyond the end of the file"))?;
        let count = entry.shape.iter().product();
        let values = match entry.element {
            Element::F16 => gather(storage, entry, count, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => gather(storage, entry, count, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            Element::F32 => gather(storage, entry, count, f32::from_le_bytes),
            Element::F64 => gather(storage, entry, count, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
            Element::Other => None,
        };
        let values = values.ok_or_else(|| fault("its elements are not floating-point numbers, or not all there"))?;
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?)
    }
}

/// The elements of a tensor in order; none where the storage is too short.
fn gather<const N: usize>(
    storage: &[u8],
    entry: &Entry,
    count: usize,
    value: impl Fn([u8; N]) -> f32,
) -> Option<Vec<f32>> {
    let (elements, _) = storage.as_chunks::<N>();
    let Some(strides) = &entry.strides else {
        return (elements.len() == count).then(|| elements.iter().map(|&bytes| value(bytes)).collect());
    };
    let mut index = vec![0usize; entry.shape.len()];
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let at: usize = index.iter().zip(strides).map(|(position, stride)| position * stride).sum();
        values.push(value(*elements.get(at)?));
        for (position, &size) in index.iter_mut().zip(&entry.shape).rev() {
            *position += 1;
            if *position < size {
                break;
            }
            *position = 0;
        }
    }
    Some(values)
}

/// A known prefix, with its point, that all names have.
fn shared_prefix(entries: &BTreeMap<String, Entry>) -> Option<String> {
    let first = entries.keys().next()?.split_once('.')?.0;
    let prefix = PREFIXES.contains(&first).then(|| format!("{first}."))?;
    entries.keys().all(|name| name.starts_with(&prefix)).then_some(prefix)
}

fn safetensors_entries(bytes: &[u8]) -> std::result::Result<BTreeMap<String, Entry>, String> {
    let unknown = || "neither safetensors nor a PyTorch checkpoint (or the download is incomplete)".to_string();
    let length = u64::from_le_bytes(*bytes.first_chunk::<8>().ok_or_else(unknown)?);
    if length > LONGEST_HEADER || bytes.get(8) != Some(&b'{') {
        return Err(unknown());
    }
    let (header, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| format!("damaged safetensors file: {error}"))?;
    let mut entries = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let element = match info.dtype {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            _ => Element::Other,
        };
        let (begin, end) = info.data_offsets;
        let range = 8 + header + begin..8 + header + end;
        entries.insert(name, Entry { shape: info.shape.clone(), element, range, strides: None });
    }
    Ok(entries)
}
