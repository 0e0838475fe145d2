//! The index of a zip file whose members are stored, not compressed: the form in which `torch.save` writes.
//!
//! Source: PKWARE, .ZIP File Format Specification (APPNOTE) 6.3, sections 4.3.7, 4.3.12, 4.3.14–4.3.16 and 4.5.3.
//! Nothing is copied: a member is a range of the file's bytes.

use std::collections::BTreeMap;
use std::ops::Range;

type Result<T> = std::result::Result<T, String>;

/// A file inside the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) range: Range<usize>,
    crc: u32,
}

impl Member {
    /// Its bytes, after a look at their checksum.
    pub(crate) fn verified<'a>(&self, file: &'a [u8], name: &str) -> Result<&'a [u8]> {
        let bytes = file.get(self.range.clone()).ok_or_else(|| format!("{name} lies beyond the end of the file"))?;
        if crc32(bytes) == self.crc {
            Ok(bytes)
        } else {
            Err(format!("damaged zip file: the CRC-32 of {name} is wrong (or it was written without checksums)"))
        }
    }
}

const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
const CENTRAL_HEADER: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
/// Length of the end record, and of the longest comment after it.
const END_LENGTH: usize = 22;
const LONGEST_COMMENT: usize = 0xffff;
/// The extra field with 64-bit sizes.
const EXTRA_64: u16 = 1;

/// Whether the bytes begin as a zip file does.
pub(crate) fn is_zip(file: &[u8]) -> bool {
    file.starts_with(&LOCAL_HEADER)
}

/// The members of an archive by name.
pub(crate) fn members(file: &[u8]) -> Result<BTreeMap<String, Member>> {
    let (count, mut at, end) = directory(file)?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        if at >= end {
            return Err("damaged zip file: its directory is shorter than it says".to_string());
        }
        let header = field(file, at, 46)?;
        if header[..4] != CENTRAL_HEADER {
            return Err("damaged zip file: an entry of its directory is none".to_string());
        }
        let [name_length, extra_length, comment_length] = [28, 30, 32].map(|offset| u16_at(header, offset) as usize);
        let name = field(file, at + 46, name_length)?;
        let extra = field(file, at + 46 + name_length, extra_length)?;
        at += 46 + name_length + extra_length + comment_length;
        let name = std::str::from_utf8(name).map_err(|_| "a name in the zip file is not UTF-8".to_string())?;
        let (method, flags) = (u16_at(header, 10), u16_at(header, 8));
        if method != 0 || flags & 1 != 0 {
            return Err(format!("{name} is compressed or encrypted; torch.save stores it as it is"));
        }
        let sizes = [24, 20, 42].map(|offset| u64::from(u32_at(header, offset)));
        let [size, stored, local] = with_extra(sizes, extra, name)?;
        if size != stored {
            return Err(format!("damaged zip file: {name} has two sizes"));
        }
        let member = Member { range: contents(file, local, size, name)?, crc: u32_at(header, 16) };
        if members.insert(name.to_string(), member).is_some() {
            return Err(format!("{name} is in the zip file twice"));
        }
    }
    Ok(members)
}

/// Number of entries, beginning and end of the directory.
fn directory(file: &[u8]) -> Result<(u64, usize, usize)> {
    let none = || "damaged zip file: it has no directory at its end (was the download complete?)".to_string();
    let first = file.len().saturating_sub(END_LENGTH + LONGEST_COMMENT);
    let last = file.len().checked_sub(END_LENGTH).ok_or_else(none)?;
    let at = (first..=last).rev().find(|&at| file[at..].starts_with(&END)).ok_or_else(none)?;
    let record = field(file, at, END_LENGTH)?;
    let count = u64::from(u16_at(record, 10));
    let (size, offset) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let locator = at.checked_sub(20).map(|start| &file[start..at]).filter(|record| record.starts_with(&LOCATOR_64));
    let (count, size, offset, limit) = match locator {
        Some(locator) if count == 0xffff || size == 0xffff_ffff || offset == 0xffff_ffff => {
            let start = usize::try_from(u64_at(locator, 8)).map_err(|_| none())?;
            let record = field(file, start, 56)?;
            if !record.starts_with(&END_64) {
                return Err(none());
            }
            (u64_at(record, 32), u64_at(record, 40), u64_at(record, 48), start)
        }
        _ => (count, size, offset, at),
    };
    let begin = usize::try_from(offset).map_err(|_| none())?;
    let end = usize::try_from(size).ok().and_then(|size| begin.checked_add(size)).ok_or_else(none)?;
    if end > limit { Err(none()) } else { Ok((count, begin, end)) }
}

/// Sizes and offset, in this order, taken from the 64-bit field where the 32-bit one is full.
fn with_extra(mut sizes: [u64; 3], mut extra: &[u8], name: &str) -> Result<[u64; 3]> {
    if sizes.iter().all(|&size| size != 0xffff_ffff) {
        return Ok(sizes);
    }
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let mut content = extra.get(4..4 + length).unwrap_or_default();
        if id == EXTRA_64 {
            for size in sizes.iter_mut().filter(|size| **size == 0xffff_ffff) {
                let (value, rest) = content
                    .split_first_chunk::<8>()
                    .ok_or_else(|| format!("damaged zip file: the sizes of {name} are incomplete"))?;
                *size = u64::from_le_bytes(*value);
                content = rest;
            }
            return Ok(sizes);
        }
        extra = extra.get(4 + length..).unwrap_or_default();
    }
    Err(format!("damaged zip file: the sizes of {name} are missing"))
}

/// Where the bytes of a member are, by its local header.
fn contents(file: &[u8], local: u64, size: u64, name: &str) -> Result<Range<usize>> {
    let beyond = || format!("damaged zip file: {name} lies beyond its end");
    let local = usize::try_from(local).map_err(|_| beyond())?;
    let header = field(file, local, 30)?;
    if header[..4] != LOCAL_HEADER {
        return Err(format!("damaged zip file: {name} is not where its directory says"));
    }
    let start = local + 30 + u16_at(header, 26) as usize + u16_at(header, 28) as usize;
    let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size)).ok_or_else(beyond)?;
    if end > file.len() { Err(beyond()) } else { Ok(start..end) }
}

fn field(file: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    let range = at.checked_add(length).map(|end| at..end);
    let bytes = range.and_then(|range| file.get(range));
    bytes.ok_or_else(|| "damaged zip file: a record lies beyond its end".to_string())
}

// The callers have made sure of the lengths.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32 with the reflected polynomial 0xEDB88320 (section 4.4.7 of the specification).
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        for bytes in [&b""[..], b"PK\x03\x04", &[0; 100]] {
            assert!(members(bytes).unwrap_err().contains("no directory"));
        }
    }
}
