//! What is written: text, JSON lines, n-best lists.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::batch::{Compression, Compressor, Counts, Part};
use crate::cli::alignment::Alignment;
use crate::cli::{Ending, interrupt, note, stdout};
use crate::files::{Aside, Place, io};
use crate::{Result, TextHypothesis, Translation};

/// Where lines go.
enum Sink {
    /// Standard output, a pipe, a device: written as it comes.
    Direct(PathBuf, File),
    /// A file, under another name until it is whole, and what is noted of it until then.
    Aside(Aside, Option<PathBuf>),
    /// A part of a job, and the name that it has until it is committed.
    Part(PathBuf, Box<Compressor<Part>>),
}

/// Lines that are waiting, at most about so many bytes.
const BUFFER: usize = 1 << 16;

/// A file or standard output, written in whole lines.
pub(super) struct Output {
    sink: Sink,
    /// Whole lines that have not been written yet.
    waiting: Vec<u8>,
}

impl Output {
    /// A file that appears when it is [finished](Output::finish), or standard output for `None` and `-`.
    pub(super) fn create(path: Option<&Path>) -> Result<Self> {
        let path = path.unwrap_or(Path::new("-"));
        match Self::direct(path)? {
            Some(output) => Ok(output),
            None => Ok(Output { sink: Sink::Aside(Aside::create(path)?, None), waiting: Vec::new() }),
        }
    }

    /// What is written as it comes, if `path` is that: standard output, a pipe, a device.
    pub(super) fn direct(path: &Path) -> Result<Option<Self>> {
        let file = match path.as_os_str() == "-" {
            true => stdout::open()?,
            false if is_direct(path) => File::options().append(true).open(path).map_err(io("open", path))?,
            false => return Ok(None),
        };
        Ok(Some(Output { sink: Sink::Direct(path.to_path_buf(), file), waiting: Vec::new() }))
    }

    /// Goes on behind the lines that `aside` holds. An end before it is [finished](Output::finish) leaves them there, and the file
    /// `note`.
    pub(super) fn behind(aside: Aside, note: PathBuf) -> Self {
        Output { sink: Sink::Aside(aside, Some(note)), waiting: Vec::new() }
    }

    /// A part of a job, which appears when it is [committed](Output::commit).
    pub(super) fn part(mut part: Part, compression: Compression) -> Self {
        let path = part.parts().0.to_path_buf();
        let compressor = Box::new(Compressor::new(compression, part));
        Output { sink: Sink::Part(path, compressor), waiting: Vec::new() }
    }

    /// Adds a line. Lines are written in one piece, so that whoever reads along sees whole ones.
    pub(super) fn line(&mut self, line: &str) -> Result<()> {
        self.waiting.extend_from_slice(line.as_bytes());
        self.text("\n")
    }

    /// Adds text that brings its own ends of lines.
    pub(super) fn text(&mut self, text: &str) -> Result<()> {
        self.waiting.extend_from_slice(text.as_bytes());
        if self.waiting.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    /// Writes the lines that are waiting. If that fails, half a line is taken back where the file allows it: it would look whole.
    pub(super) fn flush(&mut self) -> Result<()> {
        let (path, file) = match &mut self.sink {
            Sink::Direct(path, file) => (&**path, file),
            // Under the name that it has.
            Sink::Aside(aside, _) => aside.parts(),
            Sink::Part(path, compressor) => {
                compressor.write_all(&self.waiting).map_err(io("write", path))?;
                self.waiting.clear();
                return Ok(());
            }
        };
        let mut at = 0;
        while at < self.waiting.len() {
            let source = match file.write(&self.waiting[at..]) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(count) => {
                    at += count;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let error = io("write", path)(source);
            let whole = self.waiting[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            take_back(file, (at - whole) as u64);
            self.waiting.clear();
            return Err(error);
        }
        self.waiting.clear();
        Ok(())
    }

    /// Ends a stream: completes it, or says where the lines of an interrupted one are.
    pub(super) fn end(self, bad_lines: bool) -> Result<Ending> {
        if !interrupt::asked() {
            self.finish()?;
            return Ok(if bad_lines { Ending::BadLines } else { Ending::Complete });
        }
        if let Sink::Aside(mut aside, _) = self.sink {
            let (partial, _) = aside.parts();
            let partial = partial.display();
            note(&format!("the lines so far are in {partial}; the same command with --resume continues"));
        }
        Ok(Ending::Interrupted)
    }

    /// Writes the lines that are waiting and gives a file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        match self.sink {
            Sink::Aside(aside, note) => {
                aside.finish()?;
                // It may never have been there.
                _ = note.map(std::fs::remove_file);
                Ok(())
            }
            Sink::Direct(..) | Sink::Part(..) => Ok(()),
        }
    }

    /// Writes the lines that are waiting, and commits a part.
    pub(super) fn commit(mut self, counts: Counts) -> Result<()> {
        self.flush()?;
        match self.sink {
            Sink::Part(path, compressor) => compressor.finish().map_err(io("write", &path))?.commit(counts),
            Sink::Aside(..) | Sink::Direct(..) => self.finish(),
        }
    }
}

/// Whether a path leads to something that is written as it comes: no regular file, or an open one of this process.
fn is_direct(path: &Path) -> bool {
    path.metadata().is_ok() && (Place::of(path).is_none() || stdout::is_open_file(path))
}

/// Cuts the last bytes of a regular file, if they are still its last.
fn take_back(file: &mut File, bytes: u64) {
    let (Ok(metadata), Ok(position)) = (file.metadata(), file.stream_position()) else { return };
    if bytes > 0 && metadata.is_file() && metadata.len() == position {
        _ = file.set_len(position.saturating_sub(bytes)).and_then(|()| file.seek(SeekFrom::End(0)));
    }
}

/// Text as one line: a piece may hold a line break.
pub(super) fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// A translation as a line of text, with its alignment behind it where asked for, as Marian writes them.
pub(super) fn text_line(hypothesis: &TextHypothesis, alignment: Option<Alignment>) -> String {
    let text = one_line(&hypothesis.text);
    match alignment {
        Some(alignment) => format!("{text} ||| {}", alignment.write(hypothesis)),
        None => text,
    }
}

/// An n-best list as Moses and Marian write it: `number ||| text ||| F0= the model's log-probability ||| score`, with the
/// alignment, where asked for, behind the text.
pub(super) fn n_best(number: u64, translation: &Translation, alignment: Option<Alignment>) -> String {
    let line = |h: &TextHypothesis| {
        let (log_prob, score) = (h.log_prob, h.score);
        format!("{} ||| {} ||| F0= {log_prob} ||| {score}", number - 1, text_line(h, alignment))
    };
    translation.hypotheses.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes a line to standard output.
pub(super) fn print(line: &str) -> Result<()> {
    stdout::check()?;
    let written = writeln!(std::io::stdout(), "{line}");
    written.map_err(io("write", Path::new("-")))
}
