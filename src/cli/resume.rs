//! `--resume`: what an earlier try has left of a stream of lines, and how many lines of input that answers.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use crate::cli::input::Line;
use crate::cli::note;
use crate::cli::output::Output;
use crate::files::{Aside, io, partial};
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

/// Opens the output of a stream; `None` if there is nothing left to do.
///
/// # Errors
/// [`Error::Io`], and [`Error::Option`] for a stream that cannot be continued.
pub(super) fn start(path: Option<&Path>, resume: bool, unit: Unit) -> Result<Option<Start>> {
    let Some(path) = path.filter(|_| resume) else {
        return Ok(Some(Start { output: Output::stream(path)?, done: 0 }));
    };
    if path.exists() && !path.is_file() {
        let (expected, got) = ("a regular file as the output".into(), path.display().to_string());
        return Err(Error::Option { option: "resume", expected, got });
    }
    if path.exists() && !partial(path).exists() {
        note(&format!("{} is complete: nothing to resume", path.display()));
        return Ok(None);
    }
    let mut aside = Aside::open(path)?;
    let (name, file) = aside.parts();
    let found = count(&mut BufReader::new(&mut *file), unit).map_err(io("read", name))?;
    file.set_len(found.bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io("write", name))?;
    if found.done > 0 {
        note(&format!("resuming behind line {} of the input", found.done));
    }
    Ok(Some(Start { output: Output::behind(aside), done: found.done }))
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
