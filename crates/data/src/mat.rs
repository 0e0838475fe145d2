//! One matrix of bytes out of a MATLAB file of version 5: what SBD's label maps are stored in.
//!
//! Source: MathWorks, *MAT-File Format*, chapter "Level 5 MAT-File Format": a header of 128 bytes, then data elements,
//! each a tag (type, size) and a body; compressed elements hold one element each. Read are structs and full numeric
//! arrays; everything else is stepped over.

use std::io::Read;

use flate2::read::ZlibDecoder;

use crate::LabelMap;
use crate::decode::check_size;

/// Largest decompressed element, in bytes: SBD's are below 1 MB.
const MOST: u64 = 256 << 20;
/// Structs within structs.
const DEEPEST: usize = 8;
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const STRUCT: u8 = 2;

type Result<T> = std::result::Result<T, String>;

/// Reads the matrix at `path` (variable, field, field …) as a label map of raw ids.
pub(crate) fn labels(bytes: &[u8], path: &[&str]) -> Result<LabelMap> {
    let header = bytes.get(..128).ok_or("is no MATLAB file of version 5: shorter than its header")?;
    let big = match (&header[126..128], &header[124..126]) {
        (b"IM", [_, 1]) => false,
        (b"MI", [1, _]) => true,
        _ => return Err("is no MATLAB file of version 5; save it with -v7 or earlier".into()),
    };
    let mut reader = Reader { bytes: &bytes[128..], big };
    while !reader.bytes.is_empty() {
        let (kind, body) = reader.element()?;
        let found = if kind == COMPRESSED {
            let mut inner = Vec::new();
            let read = ZlibDecoder::new(body).take(MOST + 1).read_to_end(&mut inner);
            read.map_err(|error| format!("damaged MATLAB file: {error}"))?;
            if inner.len() as u64 > MOST {
                return Err(format!("an element has more than {MOST} bytes"));
            }
            let (kind, body) = Reader { bytes: &inner, big }.element()?;
            find(kind, body, big, path, 0)?
        } else {
            find(kind, body, big, path, 0)?
        };
        if let Some(labels) = found {
            return Ok(labels);
        }
    }
    Err(format!("holds no {}", path.join(".")))
}

/// The matrix, where this element is the variable that the path begins with.
fn find(kind: u32, body: &[u8], big: bool, path: &[&str], depth: usize) -> Result<Option<LabelMap>> {
    if kind != MATRIX || body.is_empty() {
        return Ok(None);
    }
    let mut reader = Reader { bytes: body, big };
    let (kind, flags) = reader.element()?;
    if kind != UINT32 {
        return Err(damaged());
    }
    // The class is the lowest byte of the first number.
    let class = *flags.get(if big { 3 } else { 0 }).ok_or_else(damaged)?;
    let (kind, dimensions) = reader.element()?;
    if kind != INT32 || dimensions.len() % 4 != 0 {
        return Err(damaged());
    }
    let sizes: Vec<u32> = dimensions.chunks_exact(4).map(|part| reader.number(part)).collect();
    let (_, name) = reader.element()?;
    let (wanted, rest) = path.split_first().ok_or_else(damaged)?;
    // Fields of a struct have no name of their own: their struct has picked them.
    if depth == 0 && name != wanted.as_bytes() {
        return Ok(None);
    }
    match rest.first() {
        None => matrix(&mut reader, &sizes).map(Some),
        Some(field) if class == STRUCT && depth < DEEPEST => {
            let (_, length) = reader.element()?;
            let length = reader.number(length.get(..4).ok_or_else(damaged)?) as usize;
            let (_, names) = reader.element()?;
            if length == 0 || length > 64 || sizes.iter().any(|size| *size != 1) {
                return Err("holds an array of structs where one struct was expected".into());
            }
            let trimmed = |name: &[u8]| name.split(|byte| *byte == 0).next() == Some(field.as_bytes());
            let Some(place) = names.chunks_exact(length).position(trimmed) else { return Ok(None) };
            for _ in 0..place {
                reader.element()?;
            }
            let (kind, body) = reader.element()?;
            find(kind, body, big, rest, depth + 1)
        }
        Some(field) => Err(format!("{wanted} is no struct with a field {field}")),
    }
}

/// The values of a numeric array, column by column in the file, row by row here.
fn matrix(reader: &mut Reader<'_>, sizes: &[u32]) -> Result<LabelMap> {
    let &[rows, columns] = sizes else { return Err(format!("expected a matrix, got {} dimensions", sizes.len())) };
    let (height, width) = (rows as usize, columns as usize);
    check_size(width, height)?;
    let (kind, body) = reader.element()?;
    let values: Vec<u8> = match kind {
        UINT8 | INT8 => body.to_vec(),
        DOUBLE => {
            let value = |part: &[u8]| -> Result<u8> {
                let mut eight = [0u8; 8];
                eight.copy_from_slice(part);
                let value = if reader.big { f64::from_be_bytes(eight) } else { f64::from_le_bytes(eight) };
                let id = value as u8;
                if f64::from(id) == value { Ok(id) } else { Err(format!("the value {value} is no label id")) }
            };
            body.chunks_exact(8).map(value).collect::<Result<_>>()?
        }
        other => return Err(format!("its values have the type {other}; bytes or doubles were expected")),
    };
    if values.len() != width * height {
        return Err(damaged());
    }
    let ids = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| values[x * height + y]).collect();
    LabelMap::new(width, height, ids).map_err(|error| error.to_string())
}

fn damaged() -> String {
    "damaged MATLAB file: an element is cut short or inconsistent".to_string()
}

/// Takes elements off the front of bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Reader<'a> {
    fn number(&self, part: &[u8]) -> u32 {
        let mut four = [0u8; 4];
        four.copy_from_slice(&part[..4]);
        if self.big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    }

    /// Type and body of the next element.
    fn element(&mut self) -> Result<(u32, &'a [u8])> {
        let tag = self.number(self.bytes.get(..4).ok_or_else(damaged)?);
        let (kind, size, start, padded) = match (tag & 0xffff, (tag >> 16) as usize) {
            // Short bodies of up to four bytes lie inside the tag.
            (kind, size) if size > 0 => (kind, size, 4, 4),
            (kind, _) => {
                let size = self.number(self.bytes.get(4..8).ok_or_else(damaged)?) as usize;
                // A compressed element is not padded.
                (
                    kind,
                    size,
                    8,
                    if kind == COMPRESSED { size } else { size.checked_next_multiple_of(8).ok_or_else(damaged)? },
                )
            }
        };
        if start == 4 && size > 4 {
            return Err(damaged());
        }
        let body = self.bytes.get(start..).and_then(|rest| rest.get(..size)).ok_or_else(damaged)?;
        // The last element's padding may be missing.
        self.bytes = self.bytes.get(start + padded..).unwrap_or_default();
        Ok((kind, body))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    fn element(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn matrix_of(class: u8, sizes: [u32; 2], name: &str, rest: &[u8]) -> Vec<u8> {
        let flags = element(UINT32, &[class, 0, 0, 0, 0, 0, 0, 0]);
        let sizes = element(INT32, &[sizes[0].to_le_bytes(), sizes[1].to_le_bytes()].concat());
        element(MATRIX, &[flags.as_slice(), &sizes, &element(INT8, name.as_bytes()), rest].concat())
    }

    /// GTcls with Boundaries (empty) and Segmentation, as SBD has it.
    pub(crate) fn sbd(width: usize, height: usize, ids: &[u8], zipped: bool) -> Vec<u8> {
        let columns: Vec<u8> =
            (0..width).flat_map(|x| (0..height).map(move |y| y * width + x)).map(|at| ids[at]).collect();
        // The length of a field's name as a short element.
        let length = [&(4u32 << 16 | INT32).to_le_bytes()[..], &32u32.to_le_bytes()].concat();
        let mut names = vec![0u8; 64];
        names[..10].copy_from_slice(b"Boundaries");
        names[32..44].copy_from_slice(b"Segmentation");
        let fields = [
            length,
            element(INT8, &names),
            matrix_of(6, [0, 0], "", &element(DOUBLE, &[])),
            matrix_of(9, [height as u32, width as u32], "", &element(UINT8, &columns)),
        ];
        let whole = matrix_of(STRUCT, [1, 1], "GTcls", &fields.concat());
        let mut file = vec![b' '; 124];
        file.extend_from_slice(&[0, 1, b'I', b'M']);
        if zipped {
            let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            zlib.write_all(&whole).expect("compresses");
            let packed = zlib.finish().expect("compresses");
            file.extend_from_slice(&[COMPRESSED.to_le_bytes(), (packed.len() as u32).to_le_bytes()].concat());
            file.extend_from_slice(&packed);
        } else {
            file.extend_from_slice(&whole);
        }
        file
    }

    const PATH: [&str; 2] = ["GTcls", "Segmentation"];

    #[test]
    fn a_label_map_is_read_row_by_row_compressed_or_not() {
        let ids: Vec<u8> = (0..=255).collect();
        for zipped in [false, true] {
            let read = labels(&sbd(32, 8, &ids, zipped), &PATH).expect("reads");
            assert_eq!((read.width, read.height), (32, 8));
            assert_eq!(read.ids, ids);
            assert!(
                labels(&sbd(32, 8, &ids, zipped), &["GTcls", "Other"]).is_err_and(|reason| reason.contains("holds no"))
            );
            assert!(labels(&sbd(32, 8, &ids, zipped), &["GTinst", "Segmentation"]).is_err());
        }
    }

    #[test]
    fn cut_and_changed_files_are_refused_or_read_and_never_panic() {
        let ids: Vec<u8> = (0..48).collect();
        let mut refused = 0;
        for zipped in [false, true] {
            let whole = sbd(8, 6, &ids, zipped);
            for length in 0..whole.len() {
                refused += usize::from(labels(&whole[..length], &PATH).is_err());
            }
            let mut stream = dsd_random::Stream::new(7, "mutants", 0, u64::from(zipped));
            for _ in 0..2000 {
                let mut bytes = whole.clone();
                for _ in 0..1 + stream.below(4) {
                    let at = stream.below(bytes.len());
                    bytes[at] = [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1][stream.below(6)];
                }
                refused += usize::from(labels(&bytes, &PATH).is_err());
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
