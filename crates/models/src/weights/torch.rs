//! What `torch.save` writes: a zip file with a pickle of the structure and a member per storage.
//!
//! Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch 1.6 to 2.x: a tensor is a call of
//! `torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, …)`, a storage the persistent reference
//! `("storage", class, key, place, elements)`, its bytes the member `data/KEY` beside `data.pkl`.

use std::collections::{BTreeMap, BTreeSet};

use crate::weights::checkpoint::{Element, Entry};
use crate::weights::pickle::{self, Id, Pickle, Value};
use crate::weights::zip::{self, Member};

type Result<T> = std::result::Result<T, String>;

/// The beginning of a file as `torch.save` wrote it before version 1.6: a pickle of the number
/// 0x1950a86a20f9469cfc6c.
const OLD_FORMAT: [u8; 13] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e];

/// Keys below which training programs put a network's tensors, the likeliest first.
const USUAL_KEYS: [&str; 9] =
    ["state_dict", "model_state_dict", "model_state", "model", "network", "net", "student", "params", "weights"];
/// How deep dictionaries are searched.
const DEEPEST: usize = 4;
/// The longest pickle that is read, in bytes: a network of 10 000 tensors has a tenth of it.
const LONGEST_PICKLE: usize = 16 << 20;
/// The most axes that a tensor has, and the longest name that a zip file can hold. Values can occur any number of times
/// in a pickle: without limits for what is copied, a short file could fill the memory.
const MOST_AXES: usize = 8;
const LONGEST_NAME: usize = 0xffff;

/// Whether the bytes are of the format that PyTorch wrote before version 1.6.
pub(crate) fn is_old_format(file: &[u8]) -> bool {
    file.first() == Some(&0x80) && file.get(2..).is_some_and(|rest| rest.starts_with(&OLD_FORMAT))
}

/// The tensors of a checkpoint, and remarks on how they were found.
pub(crate) fn entries(file: &[u8]) -> Result<(BTreeMap<String, Entry>, Vec<String>)> {
    let members = zip::members(file)?;
    let (name, member) = members
        .iter()
        .find(|(name, _)| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or_else(|| "a zip file, but not one that torch.save wrote: it has no data.pkl".to_string())?;
    let prefix = name.strip_suffix("data.pkl").unwrap_or_default();
    if members.contains_key(&format!("{prefix}constants.pkl")) {
        return Err("a TorchScript program; save the state_dict() of the module instead".to_string());
    }
    if let Some(order) = members.get(&format!("{prefix}byteorder"))
        && order.verified(file, "byteorder")? != b"little"
    {
        return Err("a checkpoint of a big-endian machine; save it again on another".to_string());
    }
    if member.range.len() > LONGEST_PICKLE {
        return Err(format!("{name} has {} bytes, expected at most {LONGEST_PICKLE}", member.range.len()));
    }
    let pickle = pickle::parse(member.verified(file, name)?)?;
    let (path, dict) = state_dict(&pickle)?;
    let mut storages = Storages { file, prefix, members: &members, verified: BTreeSet::new() };
    let mut entries = BTreeMap::new();
    for &(key, value) in dict {
        let key = pickle.text(key).filter(|key| key.len() <= LONGEST_NAME);
        if let (Some(key), Some(arguments)) = (key, tensor(&pickle, value)) {
            let entry = storages.entry(&pickle, arguments).map_err(|message| format!("{key}: {message}"))?;
            entries.insert(key.to_string(), entry);
        }
    }
    let notes = if path.is_empty() { vec![] } else { vec![format!("taken from below the key {path:?}")] };
    Ok((entries, notes))
}

/// A dictionary on the way down.
struct Level {
    /// The dictionary that it is in, and the key there; absent at the root.
    parent: Option<(usize, Id)>,
    dict: Id,
    depth: usize,
    tensors: usize,
}

/// The dictionary of tensors in a checkpoint, and the keys that lead to it.
fn state_dict(pickle: &Pickle) -> Result<(String, &[(Id, Id)])> {
    let mut seen = BTreeSet::from([pickle.root]);
    let mut levels = vec![Level { parent: None, dict: pickle.root, depth: 0, tensors: 0 }];
    let mut next = 0;
    while let Some(&Level { dict, depth, .. }) = levels.get(next) {
        for &(key, value) in pickle.dict(dict).unwrap_or_default() {
            let Some(text) = pickle.text(key) else { continue };
            if tensor(pickle, value).is_some() {
                levels[next].tensors += 1;
            } else if depth < DEEPEST && pickle.dict(value).is_some() && !text.contains("optim") && seen.insert(value) {
                levels.push(Level { parent: Some((next, key)), dict: value, depth: depth + 1, tensors: 0 });
            }
        }
        next += 1;
    }
    // The likeliest key, then the most tensors, then the one that is met first.
    let key = |level: &Level| level.parent.and_then(|(_, key)| pickle.text(key)).unwrap_or_default();
    let rank = |level: &Level| USUAL_KEYS.iter().position(|usual| *usual == key(level)).unwrap_or(USUAL_KEYS.len());
    let with_tensors = levels.iter().filter(|level| level.tensors > 0);
    if let Some(best) = with_tensors.min_by_key(|level| (rank(level), usize::MAX - level.tensors)) {
        let mut keys = Vec::new();
        let mut level = best;
        while let Some((parent, _)) = level.parent {
            keys.push(key(level));
            level = &levels[parent];
        }
        keys.reverse();
        return Ok((keys.join("."), pickle.dict(best.dict).unwrap_or_default()));
    }
    Err(match pickle.call(pickle.root) {
        Some((name, _)) => format!("a whole object of class {name}, not its tensors; save its state_dict() instead"),
        None => "there are no tensors in it".to_string(),
    })
}

/// The arguments with which a tensor would be made, if the value is one.
fn tensor(pickle: &Pickle, id: Id) -> Option<&[Id]> {
    let (mut name, mut arguments) = pickle.call(id)?;
    if name == "torch._utils._rebuild_parameter" {
        (name, arguments) = pickle.call(*arguments.first()?)?;
    }
    if name == "torch._tensor._rebuild_from_type_v2" {
        let [function, _, inner, ..] = arguments else { return None };
        match pickle.get(*function) {
            Value::Global(function) => (name, arguments) = (function, pickle.tuple(*inner)?),
            _ => return None,
        }
    }
    (name == "torch._utils._rebuild_tensor_v2").then_some(arguments)
}

struct Storages<'a> {
    file: &'a [u8],
    prefix: &'a str,
    members: &'a BTreeMap<String, Member>,
    verified: BTreeSet<String>,
}

impl Storages<'_> {
    fn entry(&mut self, pickle: &Pickle, arguments: &[Id]) -> Result<Entry> {
        let unknown = || "a tensor of an unknown form".to_string();
        let [storage, offset, sizes, strides, ..] = arguments else { return Err(unknown()) };
        let numbers = |id: Id| {
            let items = pickle.tuple(id).filter(|items| items.len() <= MOST_AXES)?;
            items.iter().map(|&item| pickle.int(item)).collect::<Option<Vec<_>>>()
        };
        let offset = pickle.int(*offset).ok_or_else(unknown)?;
        let (shape, strides) = (numbers(*sizes).ok_or_else(unknown)?, numbers(*strides).ok_or_else(unknown)?);
        let Value::Persistent(reference) = pickle.get(*storage) else { return Err(unknown()) };
        let Some(&[_, class, key, ..]) = pickle.tuple(*reference) else { return Err(unknown()) };
        let Value::Global(class) = pickle.get(class) else { return Err(unknown()) };
        let element = match class.as_str() {
            "torch.FloatStorage" => Element::F32,
            "torch.DoubleStorage" => Element::F64,
            "torch.HalfStorage" => Element::F16,
            "torch.BFloat16Storage" => Element::Bf16,
            _ => Element::Other,
        };
        let key = pickle.text(key).filter(|key| key.len() <= LONGEST_NAME).ok_or_else(unknown)?;
        let member_name = format!("{}data/{key}", self.prefix);
        let member = self.members.get(&member_name).ok_or_else(|| format!("its storage {member_name} is missing"))?;
        if element != Element::Other && !self.verified.contains(&member_name) {
            member.verified(self.file, &member_name)?;
            self.verified.insert(member_name);
        }
        Entry::strided(shape, strides, offset, element, member.range.clone())
    }
}
