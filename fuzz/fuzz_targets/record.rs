//! See `proptests/gate/targets.rs`.
#![no_main]

#[path = "../../proptests/gate/targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = targets::record(bytes);
});
