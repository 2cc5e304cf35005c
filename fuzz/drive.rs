//! Drives a target without libFuzzer, with any compiler: seeds, changed at random.
//!
//!     cargo run --release --bin drive -- TARGET SECONDS [SEED]
//!
//! It sees no coverage, and so finds less. An input that panics is written to `artifacts`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use beamfuse_fuzz::targets::{TARGETS, fresh_state};

/// An input may not take longer.
const SLOW: Duration = Duration::from_secs(10);
/// Texts that formats give a meaning to.
const WORDS: [&str; 36] = [
    "null", "true", "-1", "1e999", "NaN", "18446744073709551616", "9223372036854775807", "4294967296", "0.1", "{}", "[]", "\"", "\\u0000",
    "\\ud800", "..", "/", "\0", "beam_size", "n_best", "data_offsets", "dtype", "shape", "bytes ", "sha",
    "<b>", "</b>", "<p>", "</", "<!--", "-->", "&amp;", "&#", "<code>", "<script>", " translate=no>", "\u{feff}",
];

/// Random numbers (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    /// Changes an input a little, or a little more.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            let end = (at + self.below(17)).min(data.len());
            match self.below(8) {
                0 if at < data.len() => data[at] ^= 1 << self.below(8),
                1 if at < data.len() => data[at] = self.below(256) as u8,
                2 => drop(data.drain(at..end)),
                3 => {
                    let piece = data[at..end].to_vec();
                    let repeated = piece.repeat(1 + self.below(64));
                    drop(data.splice(at..at, repeated));
                }
                4 => drop(data.splice(at..end, WORDS[self.below(WORDS.len())].bytes())),
                5 if at + 8 <= data.len() => {
                    let number = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63][self.below(6)];
                    let size = [1, 2, 4, 8][self.below(4)];
                    data[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
                }
                6 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    data.truncate(at);
                    data.extend(&other[from..]);
                }
                _ => data.truncate(at),
            }
        }
        data
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = arguments.split_first().expect("drive TARGET SECONDS [SEED]");
    let (_, target) = TARGETS.into_iter().find(|(own, _)| own == name).expect("one of the targets");
    let number = |at: usize, default: u64| rest.get(at).map_or(default, |text| text.parse().expect("a number"));
    let (seconds, seed) = (Duration::from_secs(number(0, 600)), number(1, 1));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = here.join("seeds").join(name).read_dir().into_iter().flatten().flatten();
    let mut seeds: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.path()).expect("a file")).collect();
    if name == "training_state" {
        seeds.push(fresh_state());
    }
    assert!(!seeds.is_empty(), "no seeds");
    seeds.sort();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (started, mut inputs, mut longest) = (Instant::now(), 0u64, Duration::ZERO);
    seeds.iter().for_each(|seed| target(seed));
    while started.elapsed() < seconds {
        let data = random.change(&seeds);
        let begun = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| target(&data)));
        longest = longest.max(begun.elapsed());
        inputs += 1;
        if ended.is_err() || begun.elapsed() > SLOW {
            let artifact = here.join("artifacts").join(format!("{name}-{seed}-{inputs}"));
            std::fs::create_dir_all(here.join("artifacts")).expect("a directory");
            std::fs::write(&artifact, &data).expect("written");
            eprintln!("{}: {}", artifact.display(), if ended.is_err() { "panicked" } else { "slow" });
            std::process::exit(1);
        }
    }
    println!("{name}: {inputs} inputs in {} s, the longest took {} ms", started.elapsed().as_secs(), longest.as_millis());
}
