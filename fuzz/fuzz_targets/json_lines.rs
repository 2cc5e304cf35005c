//! Input lines, as text and as JSON: each byte belongs to one line, each line has one outcome, and an outcome can be written.
#![no_main]

use beamfuse::cli::fuzzing::read_lines;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    for json in [false, true] {
        let read = read_lines(data, json).expect("memory does not fail");
        assert_eq!(read.len(), lines);
        assert_eq!(read.iter().map(|line| line.bytes).sum::<u64>(), data.len() as u64);
        for (number, line) in (1..).zip(&read) {
            assert_eq!(line.number, number);
            assert!(!line.written.contains('\n'));
        }
    }
});
