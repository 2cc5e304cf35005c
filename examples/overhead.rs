//! One side of benches/peers/python_overhead.py: translates a file's lines whenever it is told to, and says how long that took.
//!
//! `cargo run --release --example overhead MODEL_DIR LINES THREADS`, then on stdin `batch` (all lines in one call) or `threads` (8
//! threads that ask for one line at a time).

use std::io::BufRead;
use std::time::Instant;

use beamfuse::{DecodeOptions, EngineOptions, Error, Result, Translator};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, lines, threads] = arguments.as_slice() else {
        return Err(wrong("MODEL_DIR LINES THREADS", "others"));
    };
    let threads = threads.parse().map_err(|_| wrong("a number of threads", threads))?;
    let translator = Translator::open_with(model, &EngineOptions::default().with(|options| options.threads = threads))?;
    let text = std::fs::read_to_string(lines).map_err(|_| wrong("a text file", lines))?;
    let lines: Vec<&str> = text.lines().collect();
    let options = DecodeOptions::default();
    for told in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let start = Instant::now();
        let characters = match told.as_str() {
            "batch" => characters(&translator.translate(&lines, &options)?),
            "threads" => from_threads(&translator, &lines, &options)?,
            _ => return Err(wrong("batch or threads", &told)),
        };
        println!("{} {characters}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Thread I of 8 asks for every eighth line, one at a time.
fn from_threads(translator: &Translator, lines: &[&str], options: &DecodeOptions) -> Result<usize> {
    let work = |first: usize| -> Result<usize> {
        let own = lines.iter().skip(first).step_by(8);
        own.map(|line| Ok(characters(&translator.translate(&[line], options)?))).sum()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|first| scope.spawn(move || work(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::EngineStopped))).sum()
    })
}

/// Of all texts: both sides have to come to the same.
fn characters(translations: &[beamfuse::Translation]) -> usize {
    translations.iter().map(|translation| translation.text().chars().count()).sum()
}

fn wrong(expected: &str, got: &str) -> Error {
    Error::Input { operation: "read arguments", expected: expected.to_owned(), got: got.to_owned() }
}
