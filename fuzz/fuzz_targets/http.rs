#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| beamfuse_fuzz::targets::http(data));
