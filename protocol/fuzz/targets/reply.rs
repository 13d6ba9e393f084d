#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use understudy_protocol::wire::envelope::Reply;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::payload::<Reply>(bytes));
