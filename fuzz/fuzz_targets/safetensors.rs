//! What `dsd_tests::formats` says of `safetensors`.
#![no_main]

use dsd_tests::formats::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Format::named("safetensors").read(bytes);
});
