//! Parts and their records, written so that a crash at any moment leaves each part whole or to be made anew.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Unit;
use super::digest::{digest_bytes, digest_file};
use super::record::{Counts, Input, Output, Record};
use crate::files::{Aside, io, partial};
use crate::{Error, Result};

/// An output directory, and what all of its parts have in common.
///
/// Several processes, on several machines, may work for one directory: a part that another one is writing is refused.
#[derive(Debug)]
pub struct Job {
    directory: PathBuf,
    options: Map<String, Value>,
    model: String,
    resume: bool,
}

/// What has become of a part before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is whole, and what this job would write.
    Done(Counts),
    /// Nothing of it counts.
    Open,
}

impl Job {
    /// A job that writes to a directory. `options` are all that rows depend on beside the inputs and the model's version, `model`.
    /// Without `resume` nothing of it may be there yet.
    pub fn new(directory: &Path, options: Map<String, Value>, model: String, resume: bool) -> Self {
        Job { directory: directory.to_path_buf(), options, model, resume }
    }

    /// What has become of a part of this input, and notes it as done where a crash came between its name and its record's.
    ///
    /// # Errors
    /// [`Error::Input`] names what differs from this job where the part was made by another, and a part without a record.
    pub fn state(&self, input: &Input, part: &str) -> Result<State> {
        let path = self.directory.join(part);
        let record = Record::path(&self.directory, part);
        let there = path.symlink_metadata().is_ok();
        if !self.resume {
            return match there || record.exists() {
                false => Ok(State::Open),
                true => Err(refuse("start the job", "no such part yet, or --resume".into(), path)),
            };
        }
        if !there {
            return Ok(State::Open);
        }
        let found = match record.exists() {
            true => Record::read(&record)?,
            false => self.pending(&path, &record)?,
        };
        if let Some((name, had, wanted)) = found.difference(&self.record(input, part)) {
            let got = format!("{had} in the record of {}; another output directory takes other parts", path.display());
            return Err(Error::Input { operation: "resume", expected: format!("{name} {wanted}"), got });
        }
        let length = path.metadata().map_err(io("read", &path))?.len();
        if length != found.output.bytes {
            let got = format!("{length}: it was changed later; delete it to have it made anew");
            let expected = format!("{}: {} bytes, as in its record", path.display(), found.output.bytes);
            return Err(Error::Input { operation: "resume", expected, got });
        }
        if !record.exists() {
            let aside = Aside::open(&record)?;
            aside.finish()?;
        }
        Ok(State::Done(found.counts))
    }

    /// The record of a part that has its name already, where the record itself has not.
    fn pending(&self, path: &Path, record: &Path) -> Result<Record> {
        let no_record =
            || refuse("resume", "a part with a record, or no such file; delete it to have it made".into(), path);
        let found = Record::read(&partial(record)).map_err(|_| no_record())?;
        match digest_file(path)? {
            (digest, bytes) if digest == found.output.sha256 && bytes == found.output.bytes => Ok(found),
            _ => Err(no_record()),
        }
    }

    /// Begins a part, aside.
    ///
    /// # Errors
    /// [`Error::Io`], also if another process is writing it.
    pub fn begin(&self, input: Input, part: &str) -> Result<Part> {
        let path = self.directory.join(part);
        create_parent(&path)?;
        create_parent(&Record::path(&self.directory, part))?;
        let aside = Aside::create(&path)?;
        // What is noted of an earlier try does not hold for what is written now.
        let record = Record::path(&self.directory, part);
        for stale in [partial(&record), record] {
            match std::fs::remove_file(&stale) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", &stale)(error)),
                _ => {}
            }
        }
        Ok(Part { aside, directory: self.directory.clone(), record: self.record(&input, part) })
    }

    /// The record of a part, as far as it is known before its rows.
    fn record(&self, input: &Input, part: &str) -> Record {
        Record {
            input: input.clone(),
            output: Output { name: part.to_owned(), bytes: 0, sha256: digest_bytes(b"") },
            counts: Counts::default(),
            options: self.options.clone(),
            model: self.model.clone(),
            beamfuse: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Unit {
    /// The input, with its digest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self) -> Result<Input> {
        let (sha256, bytes) = digest_file(&self.path)?;
        Ok(Input { name: self.name.clone(), bytes, sha256 })
    }
}

/// A part that is being written. Dropped before it is [committed](Part::commit), it leaves nothing.
#[derive(Debug)]
pub struct Part {
    aside: Aside,
    directory: PathBuf,
    record: Record,
}

impl Part {
    /// The name that it has for the time being, and the file.
    pub fn parts(&mut self) -> (&Path, &mut File) {
        self.aside.parts()
    }

    /// Writes the record, and gives part and record their names.
    ///
    /// # Errors
    /// [`Error::Io`]; the part then counts as not made, or, where it has got its name, as whole.
    pub fn commit(self, counts: Counts) -> Result<()> {
        let Part { mut aside, directory, mut record } = self;
        let (sha256, bytes) = digest_file(aside.parts().0)?;
        (record.output.sha256, record.output.bytes, record.counts) = (sha256, bytes, counts);
        // It stays if what follows fails: it then says whose the part is.
        let mut note = Aside::open(&Record::path(&directory, &record.output.name))?;
        let line = record.to_line()?;
        let (path, file) = note.parts();
        let written = file.set_len(0).and_then(|()| file.write_all(line.as_bytes())).and_then(|()| file.sync_all());
        written.map_err(io("write", path))?;
        aside.finish()?;
        note.finish()
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.parts().1.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.parts().1.flush()
    }
}

/// Creates the directory that a file is to lie in.
fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(io("create", parent))
}

fn refuse(operation: &'static str, expected: String, path: impl AsRef<Path>) -> Error {
    Error::Input { operation, expected, got: path.as_ref().display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{RECORDS, digest_bytes};

    fn options(beam: usize) -> Map<String, Value> {
        serde_json::json!({ "beam_size": beam }).as_object().cloned().expect("an object")
    }

    fn input() -> Input {
        Input { name: "a.txt".into(), bytes: 2, sha256: digest_bytes(b"a\n") }
    }

    fn job(dir: &Path, resume: bool) -> Job {
        Job::new(dir, options(4), "model".into(), resume)
    }

    const ONE: Counts = Counts { rows: 1, failed: 0 };

    fn write(job: &Job) {
        let mut part = job.begin(input(), "sub/a.txt").expect("begun");
        part.parts().1.write_all(b"b\n").expect("written");
        part.commit(ONE).expect("committed");
    }

    fn said(result: Result<State>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn a_part_that_was_committed_is_done_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        assert_eq!(job(dir, false).state(&input(), "sub/a.txt").expect("new"), State::Open);
        write(&job(dir, false));
        assert_eq!(job(dir, true).state(&input(), "sub/a.txt").expect("resumed"), State::Done(ONE));
        assert_eq!(job(dir, true).state(&input(), "b.txt").expect("resumed"), State::Open);
        assert!(said(job(dir, false).state(&input(), "sub/a.txt")).contains("--resume"));
        let other = Job::new(dir, options(5), "model".into(), true);
        let told = said(other.state(&input(), "sub/a.txt"));
        assert!(told.contains("expected beam_size 5, got 4"), "{told}");
        let other = Job::new(dir, options(4), "m2".into(), true);
        assert!(said(other.state(&input(), "sub/a.txt")).contains("expected model m2, got model"));
        let changed = Input { sha256: digest_bytes(b"c"), ..input() };
        assert!(said(job(dir, true).state(&changed, "sub/a.txt")).contains("digest of the input"));
        std::fs::write(dir.join("sub/a.txt"), "longer\n").expect("written");
        assert!(said(job(dir, true).state(&input(), "sub/a.txt")).contains("expected "));
        std::fs::remove_file(dir.join("sub/a.txt")).expect("there");
        assert_eq!(job(dir, true).state(&input(), "sub/a.txt").expect("resumed"), State::Open);
        write(&job(dir, true));
        assert_eq!(job(dir, true).state(&input(), "sub/a.txt").expect("resumed"), State::Done(ONE));
    }

    /// A crash after each step of the protocol.
    #[test]
    fn a_crash_leaves_a_part_whole_or_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let part = dir.join("sub/a.txt");
        let record = Record::path(dir, "sub/a.txt");
        let state = || job(dir, true).state(&input(), "sub/a.txt");
        write(&job(dir, false));
        // Between the names of the part and of its record.
        std::fs::rename(&record, partial(&record)).expect("there");
        assert_eq!(state().expect("whole"), State::Done(ONE));
        assert!(record.exists() && !partial(&record).exists());
        // Before the part's name.
        std::fs::rename(&record, partial(&record)).expect("there");
        std::fs::rename(&part, partial(&part)).expect("there");
        assert_eq!(state().expect("open"), State::Open);
        write(&job(dir, true));
        assert_eq!(state().expect("whole"), State::Done(ONE));
        // Half a record, and a part of somebody else's.
        std::fs::write(partial(&record), "{").expect("written");
        std::fs::remove_file(&record).expect("there");
        assert!(said(state()).contains("a part with a record"));
        write(&job(dir, true));
        let mut noted = Record::read(&record).expect("there");
        noted.output.sha256 = digest_bytes(b"c\n");
        std::fs::write(partial(&record), noted.to_line().expect("JSON")).expect("written");
        std::fs::remove_file(&record).expect("there");
        assert!(said(state()).contains("a part with a record"));
    }

    #[test]
    fn a_part_that_is_given_up_leaves_nothing_and_one_is_written_once_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let job = job(dir.path(), false);
        let mut part = job.begin(input(), "a.txt").expect("begun");
        part.parts().1.write_all(b"b").expect("written");
        assert!(job.begin(input(), "a.txt").expect_err("locked").to_string().contains("another process"));
        drop(part);
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [RECORDS]);
    }

    #[test]
    fn a_rename_that_fails_leaves_a_part_whole_or_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let job = job(dir.path(), true);
        let cases = [(dir.path().join("a.txt"), State::Open), (Record::path(dir.path(), "a.txt"), State::Done(ONE))];
        for (blocked, expected) in cases {
            let mut part = job.begin(input(), "a.txt").expect("begun");
            part.parts().1.write_all(b"b\n").expect("written");
            // A directory that is not empty stands in the way.
            std::fs::create_dir_all(blocked.join("x")).expect("created");
            assert!(part.commit(ONE).is_err());
            std::fs::remove_dir_all(&blocked).expect("there");
            assert_eq!(job.state(&input(), "a.txt").expect("one of both"), expected);
        }
    }
}
