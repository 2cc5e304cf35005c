//! Input lines, as text and as JSON: each line has one outcome, and an outcome can be written; where the input is neither
//! compressed nor marked, each byte belongs to one line.
#![no_main]

use beamfuse::cli::fuzzing::read_lines;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    for json in [false, true] {
        // What is no text is refused as a whole.
        let Ok(read) = read_lines(data, json) else { return };
        let changed: [&[u8]; 3] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"];
        if !changed.iter().any(|magic| data.starts_with(magic)) {
            assert_eq!(read.len(), lines);
            assert_eq!(read.iter().map(|line| line.bytes).sum::<u64>(), data.len() as u64);
        }
        for (number, line) in (1..).zip(&read) {
            assert_eq!(line.number, number);
            assert!(!line.written.contains('\n'));
        }
    }
});
