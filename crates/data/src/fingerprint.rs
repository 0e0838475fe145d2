//! Size and hashes of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{ArchiveFacts, Error, Result};

/// Size and hashes, taken in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) sha1: String,
}

impl Fingerprint {
    /// Reads the whole file.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| Error::file(path, format!("cannot read: {error}"));
        let mut file = File::open(path).map_err(failed)?;
        let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new());
        let mut bytes = 0u64;
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            bytes += count as u64;
            sha256.update(&buffer[..count]);
            sha1.update(&buffer[..count]);
        }
        Ok(Self { bytes, sha256: hexadecimal(&sha256.finalize()), sha1: hexadecimal(&sha1.finalize()) })
    }

    /// The first difference from what the manifest says; none where all that it says is so. A manifest without a hash
    /// vouches for nothing.
    pub(crate) fn difference(&self, facts: &ArchiveFacts) -> Option<String> {
        if facts.sha256.is_none() && facts.sha1.is_none() {
            return Some("no hash is published".to_string());
        }
        if let Some(bytes) = facts.bytes.filter(|bytes| *bytes != self.bytes) {
            return Some(format!("has {} bytes, expected {bytes}", self.bytes));
        }
        let hashes = [("SHA-256", &facts.sha256, &self.sha256), ("SHA-1", &facts.sha1, &self.sha1)];
        hashes.into_iter().find_map(|(kind, expected, got)| {
            let expected = expected.as_ref()?;
            (expected != got).then(|| format!("has {kind} {got}, expected {expected}"))
        })
    }
}

/// SHA-256 of bytes in lower-case hexadecimal.
pub(crate) fn hash_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
