//! Records against files.

use std::collections::BTreeSet;
use std::io::{BufRead, ErrorKind};
use std::path::Path;

use super::digest::digest_file;
use super::plan::Unit;
use super::{Compression, RECORDS, Record};
use crate::files::io;
use crate::{Result, input};

/// What is wrong with a part, or an input that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The part, or the input, by its path within the job.
    pub name: String,
    /// What was expected, and what is there.
    pub message: String,
}

/// Checks an output directory: each part is there, has the digest and, where it is lines, the rows that its record names, and each
/// file has its record. Where the inputs are given with the names of their parts, each of them has its part, made from what it
/// holds now.
///
/// Also gives the number of parts that were looked at.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) for a directory that cannot be read.
pub fn verify(directory: &Path, inputs: Option<&[(Unit, String)]>) -> Result<(usize, Vec<Problem>)> {
    let mut problems = Vec::new();
    let mut tell = |name: &str, message: String| problems.push(Problem { name: name.to_owned(), message });
    let records = names_in(&directory.join(RECORDS), true)?;
    let files = names_in(directory, false)?;
    let mut noted = BTreeSet::new();
    for name in &records {
        match name.strip_suffix(".json") {
            None => tell(name, "expected records alone, got a file that is none, or that a crash has left".into()),
            Some(part) => {
                if let Some(message) = wrong(directory, part) {
                    tell(part, message);
                }
                noted.insert(part.to_owned());
            }
        }
    }
    for name in files.iter().filter(|name| !noted.contains(*name)) {
        tell(name, "expected a record of it, got none: it is not whole, or no part".into());
    }
    for (unit, part) in inputs.unwrap_or_default() {
        let message = match Record::read(&Record::path(directory, part)) {
            Err(_) => Some(format!("expected a part {part} of it, got none")),
            Ok(record) => match digest_file(&unit.path) {
                Err(error) => Some(error.to_string()),
                Ok((digest, _)) if digest != record.input.sha256 => {
                    Some(format!("expected the input that {part} was made of, got another: it has changed"))
                }
                Ok(_) => None,
            },
        };
        if let Some(message) = message {
            tell(&unit.name, message);
        }
    }
    Ok((noted.len(), problems))
}

/// What is wrong with a part that has a record.
fn wrong(directory: &Path, part: &str) -> Option<String> {
    let record = match Record::read(&Record::path(directory, part)) {
        Ok(record) => record,
        Err(error) => return Some(error.to_string()),
    };
    let path = directory.join(part);
    let expected = record.output;
    match digest_file(&path) {
        Err(error) => return Some(error.to_string()),
        Ok((_, bytes)) if bytes != expected.bytes => {
            return Some(format!("expected {} bytes, got {bytes}", expected.bytes));
        }
        Ok((digest, _)) if digest != expected.sha256 => {
            return Some(format!("expected SHA-256 {}, got {digest}", expected.sha256));
        }
        Ok(_) => {}
    }
    // Lists and documents have several lines a row, and other formats none.
    let name = part.strip_suffix(Compression::of_name(part).extension()).unwrap_or(part);
    let other = [".nbest", ".html", ".htm", ".xhtml", ".parquet"];
    let is_lines = other.iter().all(|ending| !name.ends_with(ending));
    match is_lines.then(|| lines(&path))? {
        Err(error) => Some(error.to_string()),
        Ok(lines) if lines != record.counts.rows => Some(format!("expected {} rows, got {lines}", record.counts.rows)),
        Ok(_) => None,
    }
}

fn lines(path: &Path) -> Result<u64> {
    let (mut reader, _) = input::open(path)?;
    let mut lines = 0;
    while reader.skip_until(b'\n').map_err(io("read", path))? > 0 {
        lines += 1;
    }
    Ok(lines)
}

/// The files in a directory and those in it, by their names within it; without the hidden ones.
fn names_in(directory: &Path, or_none: bool) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(here) = open.pop() {
        let entries = match std::fs::read_dir(&here) {
            Err(error) if or_none && error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(io("read", &here))?,
        };
        for entry in entries {
            let path = entry.map_err(io("read", &here))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                continue;
            }
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let inner = path.strip_prefix(directory).unwrap_or(&path);
                    names.insert(inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"));
                }
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::batch::{Counts, Input, Job, digest_bytes};
    use crate::files::partial;

    fn problems(dir: &Path, inputs: Option<&[(Unit, String)]>) -> Vec<String> {
        let (_, problems) = verify(dir, inputs).expect("readable");
        problems.into_iter().map(|problem| format!("{}: {}", problem.name, problem.message)).collect()
    }

    #[test]
    fn every_kind_of_damage_is_told_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, out) = (dir.path().join("a.txt"), dir.path().join("out"));
        std::fs::write(&source, "a\nb\n").expect("written");
        let unit = Unit { path: source.clone(), name: "a.txt".into() };
        let job = Job::new(&out, serde_json::Map::new(), "m".into(), true);
        let write = |part: &str, text: &str, rows: u64| {
            let input = Input { name: "a.txt".into(), bytes: 4, sha256: digest_bytes(b"a\nb\n") };
            let mut begun = job.begin(input, part).expect("begun");
            begun.parts().1.write_all(text.as_bytes()).expect("written");
            begun.commit(Counts { rows, failed: 0 }).expect("committed");
        };
        write("a.txt", "A\n\n", 2);
        write("sub/b.nbest", "0 ||| a\n0 ||| b\n", 1);
        let inputs = [(unit.clone(), "a.txt".to_owned())];
        assert_eq!(problems(&out, Some(&inputs)), [""; 0]);
        write("a.txt", "A\n", 2);
        assert_eq!(problems(&out, None), ["a.txt: expected 2 rows, got 1"]);
        write("a.txt", "A\n\n", 2);
        std::fs::write(out.join("a.txt"), "B\n\n").expect("written");
        assert!(problems(&out, None)[0].starts_with("a.txt: expected SHA-256 "));
        std::fs::write(out.join("a.txt"), "B\n").expect("written");
        assert_eq!(problems(&out, None), ["a.txt: expected 3 bytes, got 2"]);
        std::fs::remove_file(out.join("a.txt")).expect("there");
        assert!(problems(&out, None)[0].starts_with("a.txt: read "));
        write("a.txt", "A\n\n", 2);
        std::fs::write(out.join("c.txt.partial"), "").expect("written");
        std::fs::write(partial(&Record::path(&out, "c.txt")), "").expect("written");
        let told = problems(&out, None);
        assert!(told.len() == 2 && told.iter().all(|line| line.starts_with("c.txt")), "{told:?}");
        std::fs::remove_file(out.join("c.txt.partial")).expect("there");
        std::fs::remove_file(partial(&Record::path(&out, "c.txt"))).expect("there");
        std::fs::write(&source, "a\nc\n").expect("written");
        assert!(problems(&out, Some(&inputs))[0].contains("it has changed"));
        let missing = [(unit, "d.txt".to_owned())];
        assert!(problems(&out, Some(&missing))[0].contains("expected a part d.txt"));
        assert!(verify(&dir.path().join("none"), None).is_err());
    }
}
