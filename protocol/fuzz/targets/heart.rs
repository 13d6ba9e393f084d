#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use understudy_protocol::wire::heart::HeartMessage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::payload::<HeartMessage>(bytes));
