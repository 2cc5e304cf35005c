//! `--resume`: what an earlier try has left of a stream of lines, and how many lines of input that answers.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::batch::{difference, stamp_file, stamp_model};
use crate::cli::input::Line;
use crate::cli::note;
use crate::cli::output::Output;
use crate::files::{Aside, MAX_CONFIG, io, partial, read_bounded, write_whole};
use crate::{Error, Result};

/// What a stream writes for a line of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// One line.
    Line,
    /// Lines that begin with the sentence's number and ` ||| `, or an empty one.
    List,
}

/// Where to go on.
pub(super) struct Start {
    pub output: Output,
    /// Lines of input that have their output.
    pub done: u64,
}

/// What the lines of a stream depend on beside the program: whoever goes on must have the same.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn terms(options: Map<String, Value>, model: &Path, input: Option<&Path>) -> Result<Map<String, Value>> {
    let mut terms = options;
    let input = input.filter(|input| input.as_os_str() != "-");
    let place = |path: &Path| path.canonicalize().map_err(io("read", path)).map(|path| path.display().to_string());
    terms.insert("version of beamfuse".into(), env!("CARGO_PKG_VERSION").into());
    terms.insert("model".into(), place(model)?.into());
    terms.insert("files of the model".into(), stamp_model(model)?.into());
    terms.insert("input".into(), input.map(place).transpose()?.into());
    // What is read from a pipe has no length, and a time of its own.
    let stamp = input.filter(|input| input.is_file()).map(stamp_file).transpose()?;
    terms.insert("length and time of the input".into(), stamp.into());
    Ok(terms)
}

/// Where the [terms] of a stream are while it is not complete.
pub(super) fn note_of(path: &Path) -> PathBuf {
    partial(path).with_added_extension("json")
}

/// Opens the output of a stream whose lines depend on `terms`; `None` if there is nothing left to do.
///
/// # Errors
/// [`Error::Io`], and [`Error::Option`] for a stream that cannot be continued.
pub(super) fn start(
    path: Option<&Path>,
    resume: bool,
    unit: Unit,
    terms: impl FnOnce() -> Result<Map<String, Value>>,
) -> Result<Option<Start>> {
    let path = path.unwrap_or(Path::new("-"));
    let refuse = |expected: &str, got: String| Error::Option { option: "resume", expected: expected.into(), got };
    if let Some(output) = Output::direct(path)? {
        return match resume {
            true => Err(refuse("a regular file as the output", path.display().to_string())),
            false => Ok(Some(Start { output, done: 0 })),
        };
    }
    if resume && path.exists() && !partial(path).exists() {
        note(&format!("{} is complete: nothing to resume", path.display()));
        return Ok(None);
    }
    let (terms, noted) = (terms()?, note_of(path));
    let mut aside = Aside::open(path)?;
    let (name, file) = aside.parts();
    let found = match resume {
        true => count(&mut BufReader::new(&mut *file), unit).map_err(io("read", name))?,
        false => Found::default(),
    };
    if found.done > 0 {
        check(&noted, &terms)?;
    }
    file.set_len(found.bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io("write", name))?;
    if found.done > 0 {
        note(&format!("resuming behind line {} of the input", found.done));
    }
    // Behind the cut, so that no line ever lies beside what another command has noted.
    _ = std::fs::remove_file(&noted);
    if let Err(error) = write_whole(&noted, Value::from(terms).to_string().as_bytes()) {
        note(&format!("{error}; --resume could not tell later whether it is the same command"));
    }
    Ok(Some(Start { output: Output::behind(aside, noted), done: found.done }))
}

/// Refuses to go on behind lines that were made otherwise.
fn check(noted: &Path, terms: &Map<String, Value>) -> Result<()> {
    if !noted.exists() {
        note(&format!("there is no {}: the lines so far are taken for those of the same command", noted.display()));
        return Ok(());
    }
    let unreadable = |source| Error::Json { path: noted.to_path_buf(), source };
    let before: Map<String, Value> = serde_json::from_slice(&read_bounded(noted, MAX_CONFIG)?).map_err(unreadable)?;
    match difference(&before, terms) {
        None => Ok(()),
        Some((name, before, now)) => {
            let expected = format!("what the lines so far were made with: {name} {before}");
            Err(Error::Option { option: "resume", expected, got: now })
        }
    }
}

/// Lines of input from the one behind those that are done.
pub(super) fn behind(
    done: u64,
    mut next: impl FnMut() -> Result<Option<Line>>,
) -> impl FnMut() -> Result<Option<Line>> {
    let mut passed = 0;
    move || {
        while passed < done {
            passed += 1;
            if next()?.is_none() {
                let expected = format!("at least {done} lines of input, as many as have their output");
                return Err(Error::Input { operation: "resume", expected, got: (passed - 1).to_string() });
            }
        }
        next()
    }
}

/// Lines of input whose output is whole, and the bytes that it takes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    done: u64,
    bytes: u64,
}

fn count(reader: &mut impl BufRead, unit: Unit) -> std::io::Result<Found> {
    let mut found = Found::default();
    // The list that the last line is of: another line of it may be missing.
    let mut open = None;
    let (mut line, mut at) = (Vec::new(), 0);
    while reader.read_until(b'\n', &mut line)? > 0 && line.last() == Some(&b'\n') {
        let end = at + line.len() as u64;
        match number(&line).filter(|_| unit == Unit::List) {
            Some(number) if open == Some(number) => {}
            Some(number) => {
                found = Found { done: number, bytes: at };
                open = Some(number);
            }
            None => {
                let before = open.take().map_or(found.done, |number| number + 1);
                found = Found { done: before + 1, bytes: end };
            }
        }
        at = end;
        line.clear();
    }
    Ok(found)
}

/// The number that a line of a list begins with.
fn number(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b' ').next()?;
    let rest = &line[digits.len()..];
    rest.starts_with(b" ||| ").then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, unit: Unit) -> (u64, u64) {
        let Found { done, bytes } = count(&mut text.as_bytes(), unit).expect("memory does not fail");
        (done, bytes)
    }

    #[test]
    fn half_a_line_is_none() {
        for (text, expected) in
            [("", (0, 0)), ("a", (0, 0)), ("a\n\nb\n", (3, 5)), ("a\n\nb", (2, 3)), ("1 ||| a\nx", (1, 8))]
        {
            assert_eq!(found(text, Unit::Line), expected, "{text:?}");
        }
    }

    #[test]
    fn a_list_is_whole_once_the_next_has_begun() {
        for (text, expected) in [
            ("0 ||| a\n0 ||| b\n", (0, 0)),
            ("0 ||| a\n0 ||| b\n1 |", (0, 0)),
            ("0 ||| a\n0 ||| b\n1 ||| c\n", (1, 16)),
            // Empty: a sentence that has no translation.
            ("0 ||| a\n\n", (2, 9)),
            ("\n\n2 ||| a\n3 ||| b\n3 ||| c", (3, 10)),
            ("\n", (1, 1)),
        ] {
            assert_eq!(found(text, Unit::List), expected, "{text:?}");
        }
    }
}
