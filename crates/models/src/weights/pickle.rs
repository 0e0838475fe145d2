//! The structure of a pickle, without its meaning: a call is recorded as what would be called with what, and nothing is
//! ever called.
//!
//! Source: `pickletools.py` of CPython, the list of instructions up to protocol 5. Values are numbered and named by
//! their numbers, so that a value that occurs a thousand times is held once and memory is bounded by the length of the
//! input.

use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, String>;

/// The number of a value.
pub(crate) type Id = usize;

/// A value; others are named by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Int(i64),
    Text(String),
    /// `module.name`
    Global(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What would be called, with what.
    Call(Id, Id),
    /// A reference to something outside: a storage.
    Persistent(Id),
    /// Something that no checkpoint needs: a number, bytes, a set.
    Other,
}

/// All values of a pickle, and which of them is the result.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    pub(crate) root: Id,
}

impl Pickle {
    pub(crate) fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::Other)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The name of what would be called, and its arguments.
    pub(crate) fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.get(id) {
            Value::Call(callee, arguments) => match self.get(*callee) {
                Value::Global(name) => Some((name, self.tuple(*arguments)?)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Reads a pickle of protocol 2 to 5.
pub(crate) fn parse(bytes: &[u8]) -> Result<Pickle> {
    let mut machine = Machine { input: Input { bytes, at: 0 }, ..Machine::default() };
    while !machine.step()? {}
    let root = machine.pop()?;
    Ok(Pickle { values: machine.values, root })
}

#[derive(Default)]
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| "damaged pickle: it ends too early".to_string())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Result<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize> {
        usize::try_from(self.number(bytes)?).map_err(|_| "damaged pickle: a length is too great".to_string())
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_string).map_err(|_| "damaged pickle: a text is not UTF-8".to_string())
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = self.text(length.ok_or_else(|| "damaged pickle: it ends too early".to_string())?)?;
        self.at += 1;
        Ok(line)
    }
}

#[derive(Default)]
struct Machine<'a> {
    input: Input<'a>,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Id>,
}

impl Machine<'_> {
    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.len() > floor;
        above.then(|| self.stack.pop()).flatten().ok_or_else(|| "damaged pickle: its stack is empty".to_string())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| "damaged pickle: its stack is empty".to_string())
    }

    /// What lies above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| "damaged pickle: a mark is missing".to_string())?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
        items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        if let Some(Value::List(list)) = self.values.get_mut(top) {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        if let Some(Value::Dict(dict)) = self.values.get_mut(top) {
            dict.extend(Self::pairs(items));
        }
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let is_dict = matches!(self.values.get(callee), Some(Value::Global(name)) if name == "collections.OrderedDict");
        self.push(if is_dict { Value::Dict(vec![]) } else { Value::Call(callee, arguments) });
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = self.memo.get(&key).ok_or_else(|| "damaged pickle: a reference to nothing".to_string())?;
        self.stack.push(*id);
        Ok(())
    }

    fn memoize(&mut self, key: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.input.take(count)?;
        self.push(Value::Other);
        Ok(())
    }

    /// One instruction; true at the last.
    fn step(&mut self) -> Result<bool> {
        match self.input.take(1)?[0] {
            b'.' => return Ok(true),
            0x80 => match self.input.number(1)? {
                2..=5 => {}
                version => return Err(format!("pickle of protocol {version}, expected 2 to 5")),
            },
            0x95 => drop(self.input.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Other),
            b'K' => {
                let value = self.input.number(1)?;
                self.push(Value::Int(value as i64));
            }
            b'M' => {
                let value = self.input.number(2)?;
                self.push(Value::Int(value as i64));
            }
            b'J' => {
                let value = self.input.number(4)? as u32 as i32;
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.input.length(1)?;
                let bytes = self.input.take(length)?;
                self.push(long(bytes));
            }
            0x8b => {
                let length = self.input.length(4)?;
                self.skip(length)?;
            }
            b'G' => self.skip(8)?,
            b'X' => self.string(4)?,
            0x8c => self.string(1)?,
            0x8d => self.string(8)?,
            b'U' | b'C' => {
                let length = self.input.length(1)?;
                self.skip(length)?;
            }
            b'T' | b'B' => {
                let length = self.input.length(4)?;
                self.skip(length)?;
            }
            0x8e | 0x96 => {
                let length = self.input.length(8)?;
                self.skip(length)?;
            }
            b')' => self.push(Value::Tuple(vec![])),
            b']' => self.push(Value::List(vec![])),
            b'}' => self.push(Value::Dict(vec![])),
            0x8f => self.push(Value::Other),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.marked()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.marked()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = self.marked()?;
                self.push(Value::Dict(Self::pairs(&items)));
            }
            0x91 => {
                self.marked()?;
                self.push(Value::Other);
            }
            0x90 => drop(self.marked()?),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.marked()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)?;
            }
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(Value::Global(format!("{module}.{name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let part = |id: Id| match self.values.get(id) {
                    Some(Value::Text(text)) => Ok(text.as_str()),
                    _ => Err("damaged pickle: a name is no text".to_string()),
                };
                let global = format!("{}.{}", part(module)?, part(name)?);
                self.push(Value::Global(global));
            }
            b'R' | 0x81 => self.call()?,
            0x92 => {
                self.pop()?;
                self.call()?;
            }
            // The state of an object; of a dictionary, its attributes.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'q' => {
                let key = self.input.number(1)?;
                self.memoize(key)?;
            }
            b'r' => {
                let key = self.input.number(4)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => {
                let key = self.input.number(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.input.number(4)?;
                self.recall(key)?;
            }
            other => return Err(format!("pickle instruction 0x{other:02x} has no place in a checkpoint")),
        }
        Ok(false)
    }

    fn string(&mut self, bytes: usize) -> Result<()> {
        let length = self.input.length(bytes)?;
        let text = self.input.text(length)?;
        self.push(Value::Text(text));
        Ok(())
    }
}

/// A little-endian number in two's complement.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Other;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let start: i64 = if negative { -1 } else { 0 };
    Value::Int(bytes.iter().rev().fold(start, |value, &byte| value << 8 | i64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_twos_complement() {
        for (bytes, expected) in [(&[][..], 0), (&[0xff], -1), (&[0xff, 0], 255), (&[0, 0x80], -32768)] {
            assert_eq!(long(bytes), Value::Int(expected));
        }
        assert_eq!(long(&[1; 9]), Value::Other);
    }

    #[test]
    fn a_call_is_recorded_and_not_made() {
        let pickle = parse(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
        let (name, arguments) = pickle.call(pickle.root).unwrap();
        assert_eq!((name, pickle.text(arguments[0])), ("os.system", Some("ls")));
    }

    #[test]
    fn a_value_that_contains_itself_and_deep_nesting_are_held_as_numbers() {
        let itself = parse(b"\x80\x02]q\x00h\x00a.").unwrap();
        assert_eq!(itself.get(itself.root), &Value::List(vec![itself.root]));
        let mut deep = b"\x80\x02N".to_vec();
        deep.extend(vec![0x85; 100_000]);
        deep.push(b'.');
        assert!(parse(&deep).is_ok());
    }

    #[test]
    fn what_ends_early_or_refers_to_nothing_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x80",
            b"\x80\x02",
            b"\x80\x09.",
            b"\x80\x02.",
            b"\x80\x02h\x05.",
            b"\x80\x02t.",
            b"\x80\x02(N0\x85.",
            b"\x80\x02X\xff\xff\xff\xffa.",
            b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
            b"\x80\x02i.",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
