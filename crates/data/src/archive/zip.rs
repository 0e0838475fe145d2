//! Zip archives, stored or deflated, read by their directory.
//!
//! Source: PKWARE, .ZIP File Format Specification (APPNOTE) 6.3, sections 4.3 to 4.5. The directory is the truth; each
//! local header must agree with it, entries must not overlap each other or the directory, and nothing may shrink by
//! more than [`RATIO`]. The CRC-32 is checked when an entry has been read to its end.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::{Kind, Visit, checked_name};
use crate::{ArchiveLimits, Error, Result};

/// Largest size of an entry over its compressed size, for entries above [`FREE`]. Images do not shrink; text does by 20.
const RATIO: u64 = 200;
/// Bytes up to which the ratio is not looked at.
const FREE: u64 = 1 << 20;
/// Largest directory that is read, in bytes: some 100 bytes an entry.
const DIRECTORY: u64 = 256 << 20;
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";

/// One entry of the directory.
struct Member {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    offset: u64,
    /// Type bits of a Unix mode; 0 where the archive was made elsewhere.
    unix_type: u32,
}

/// Calls `visit` with every file and folder, in the order of the directory.
pub(super) fn each_entry(archive: &Path, mut file: File, limits: ArchiveLimits, visit: &mut Visit<'_>) -> Result<()> {
    let whole = |reason: String| Error::file(archive, reason);
    let (members, directory) = directory(&mut file, limits).map_err(whole)?;
    check_overlap(&members, directory).map_err(|(name, reason)| Error::archive(archive, shown(&name), reason))?;
    let mut file = BufReader::new(file);
    for member in &members {
        let refused = |reason: String| Error::archive(archive, shown(&member.name), reason);
        check(member).map_err(refused)?;
        let content = content(&mut file, member, directory).map_err(refused)?;
        let Some(name) = checked_name(&member.name).map_err(refused)? else { continue };
        let kind = if member.name.ends_with(b"/") { Kind::Folder } else { Kind::File(member.size) };
        if kind == Kind::Folder && member.size > 0 {
            return Err(refused("is a folder with content".to_string()));
        }
        let mut content = Checked { content, crc: Crc::new(), expected: member.crc };
        visit(&name, kind, &mut content)?;
    }
    Ok(())
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |part| u16::from_le_bytes([part[0], part[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |part| u32::from_le_bytes([part[0], part[1], part[2], part[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn read_at(file: &mut (impl Read + Seek), at: u64, count: u64) -> Result<Vec<u8>, String> {
    let damaged = |error: io::Error| super::damage(&error);
    file.seek(SeekFrom::Start(at)).map_err(damaged)?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() as u64 == count { Ok(bytes) } else { Err("the archive is damaged or cut short".to_string()) }
}

/// The entries, and where the directory begins.
fn directory(file: &mut File, limits: ArchiveLimits) -> Result<(Vec<Member>, u64), String> {
    let length = file.seek(SeekFrom::End(0)).map_err(|error| super::damage(&error))?;
    let tail_start = length.saturating_sub(22 + 0xffff);
    let tail = read_at(file, tail_start, length - tail_start)?;
    // The comment may hold the signature too: the true end record's comment ends with the file.
    let end = (0..tail.len().saturating_sub(21))
        .rev()
        .find(|&at| tail[at..at + 4] == END && at + 22 + usize::from(u16_at(&tail, at + 20)) == tail.len());
    let Some(end) = end else {
        return Err("is no zip archive, or cut short: its end record is missing; copy or download it again".into());
    };
    let record = &tail[end..];
    let mut count = u64::from(u16_at(record, 10));
    let (mut size, mut start) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let mut stop = tail_start + end as u64;
    let locator = stop.checked_sub(20).map(|at| read_at(file, at, 20)).transpose()?;
    if let Some(locator) = locator.filter(|locator| locator[..4] == LOCATOR_64) {
        stop = u64_at(&locator, 8);
        let record = read_at(file, stop, 56)?;
        if record[..4] != END_64 {
            return Err("damaged zip archive: its 64-bit end record is none".into());
        }
        (count, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    if start.checked_add(size) != Some(stop) {
        return Err("damaged zip archive: its directory does not end where its end record begins".into());
    }
    if count > limits.entries as u64 {
        return Err(format!("the archive has {count} entries, the limit is {}", limits.entries));
    }
    if size > DIRECTORY {
        return Err(format!("its directory has {size} bytes, the limit is {DIRECTORY}"));
    }
    let bytes = read_at(file, start, size)?;
    let mut members = Vec::new();
    let mut rest = bytes.as_slice();
    for _ in 0..count {
        let (member, length) = member(rest)?;
        members.push(member);
        rest = rest.get(length..).unwrap_or_default();
    }
    if rest.is_empty() {
        Ok((members, start))
    } else {
        Err("damaged zip archive: its directory holds more than it says".into())
    }
}

/// The first entry of the rest of a directory, and its length there.
fn member(bytes: &[u8]) -> Result<(Member, usize), String> {
    let damaged = || "damaged zip archive: an entry of its directory is none or cut short".to_string();
    if bytes.len() < 46 || bytes[..4] != CENTRAL {
        return Err(damaged());
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(bytes, at)));
    let extra = bytes.get(46 + name..46 + name + extra).ok_or_else(damaged)?;
    let length = 46 + name + extra.len() + comment;
    let spelled = bytes.get(46..46 + name).ok_or_else(damaged)?.to_vec();
    if bytes.len() < length {
        return Err(damaged());
    }
    let made_on_unix = bytes[5] == 3;
    let mut member = Member {
        name: spelled,
        flags: u16_at(bytes, 8),
        method: u16_at(bytes, 10),
        crc: u32_at(bytes, 16),
        packed: u64::from(u32_at(bytes, 20)),
        size: u64::from(u32_at(bytes, 24)),
        offset: u64::from(u32_at(bytes, 42)),
        unix_type: if made_on_unix { (u32_at(bytes, 38) >> 16) & 0xf000 } else { 0 },
    };
    // The extra field 1 holds, in this order, those of the three that did not fit 32 bits.
    let mut wide = field(extra, 1).unwrap_or_default();
    for value in [&mut member.size, &mut member.packed, &mut member.offset] {
        if *value == u64::from(u32::MAX) {
            if wide.len() < 8 {
                return Err(damaged());
            }
            *value = u64_at(wide, 0);
            wide = &wide[8..];
        }
    }
    Ok((member, length))
}

/// The body of an extra field.
fn field(mut extra: &[u8], id: u16) -> Option<&[u8]> {
    while extra.len() >= 4 {
        let end = 4 + usize::from(u16_at(extra, 2));
        let body = extra.get(4..end)?;
        if u16_at(extra, 0) == id {
            return Some(body);
        }
        extra = &extra[end..];
    }
    None
}

fn check(member: &Member) -> Result<(), String> {
    if member.flags & 1 != 0 {
        return Err("is encrypted; unpack it yourself and give the folder".into());
    }
    match member.unix_type {
        0 | 0x8000 | 0x4000 => {}
        0xa000 => return Err("is a link; only regular files and folders are accepted".into()),
        other => return Err(format!("has the Unix type {other:#x}; only regular files and folders are accepted")),
    }
    if !matches!(member.method, 0 | 8) {
        return Err(format!("has compression method {}; only stored and deflated entries are read", member.method));
    }
    if member.method == 0 && member.packed != member.size {
        return Err("is stored with two different sizes".into());
    }
    if member.size > FREE && member.size / RATIO > member.packed {
        return Err(format!("grows from {} to {} bytes, more than {RATIO} times", member.packed, member.size));
    }
    Ok(())
}

/// Entries must lie one after the other, before the directory.
fn check_overlap(members: &[Member], directory: u64) -> Result<(), (Vec<u8>, String)> {
    let mut order: Vec<&Member> = members.iter().collect();
    order.sort_by_key(|member| member.offset);
    let mut free = 0u64;
    for member in order {
        let end = (member.offset.checked_add(30 + member.name.len() as u64))
            .and_then(|start| start.checked_add(member.packed))
            .filter(|end| *end <= directory);
        match end {
            Some(end) if member.offset >= free => free = end,
            _ => return Err((member.name.clone(), "overlaps another entry or the directory".to_string())),
        }
    }
    Ok(())
}

/// The entry's decompressed bytes, after a look at its local header.
fn content<'a>(file: &'a mut BufReader<File>, member: &Member, directory: u64) -> Result<Box<dyn Read + 'a>, String> {
    let header = read_at(file, member.offset, 30)?;
    let [name, extra] = [26, 28].map(|at| u64::from(u16_at(&header, at)));
    let named = read_at(file, member.offset + 30, name)?;
    let later_sizes = u16_at(&header, 6) & 8 != 0;
    let agrees = header[..4] == LOCAL
        && named == member.name
        && u16_at(&header, 8) == member.method
        && (later_sizes || u32_at(&header, 14) == member.crc);
    if !agrees {
        return Err("differs between the archive's directory and its own header".into());
    }
    let start = member.offset + 30 + name + extra;
    if start.checked_add(member.packed).is_none_or(|end| end > directory) {
        return Err("reaches into the archive's directory".into());
    }
    file.seek(SeekFrom::Start(start)).map_err(|error| super::damage(&error))?;
    let packed = file.take(member.packed);
    Ok(if member.method == 0 { Box::new(packed) } else { Box::new(DeflateDecoder::new(packed)) })
}

/// Fails at the end where the checksum is wrong.
struct Checked<'a> {
    content: Box<dyn Read + 'a>,
    crc: Crc,
    expected: u32,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.crc.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() && self.crc.sum() != self.expected {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its CRC-32 is wrong"));
        }
        Ok(count)
    }
}
