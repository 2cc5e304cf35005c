//! Parallel text: read, checked line by line, turned into ids, and cut into batches.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use crate::cpu::philox::{Purpose, philox};
use crate::files::io;
use crate::input::{self, CONVERT, TextReader};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Where parallel text lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// One file with lines of source TAB target.
    Tsv(PathBuf),
    /// Two files, line by line translations of each other.
    Files(PathBuf, PathBuf),
}

impl fmt::Display for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Corpus::Tsv(path) => write!(f, "{}", path.display()),
            Corpus::Files(source, target) => write!(f, "{} and {}", source.display(), target.display()),
        }
    }
}

/// A sentence and its translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Source ids, end of sentence included.
    pub source: Vec<u32>,
    /// Target ids, end of sentence included.
    pub target: Vec<u32>,
    /// The target's text: what rewards compare with.
    pub text: String,
    /// The source's text.
    pub source_text: String,
    /// Its line in the corpus, counted from 1.
    pub line: u64,
}

/// Parallel text in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pairs: Vec<Pair>,
    skipped: usize,
}

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// The lines of a text, read one by one: neither a large file nor a pipe is held in memory.
struct Text<'a> {
    path: &'a Path,
    reader: TextReader,
    number: usize,
}

/// Something of a line, or what is wrong with it.
type OrBad<T> = Result<T, String>;

impl<'a> Text<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        Ok(Text { path, reader: input::open(path)?.0, number: 0 })
    }

    fn next(&mut self) -> Result<Option<OrBad<String>>> {
        let mut line = Vec::new();
        let io = io("read", self.path);
        if self.reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(&io)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.len() as u64 > MAX_LINE && line.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n').map_err(&io)?;
            return Ok(Some(Err(format!("a line of more than {MAX_LINE} bytes"))));
        }
        if line.pop_if(|byte| *byte == b'\n').is_some() {
            line.pop_if(|byte| *byte == b'\r');
        }
        let text = String::from_utf8(line).map_err(|_| {
            let reason = format!("line {}: expected UTF-8, got an invalid byte; {CONVERT}", self.number);
            io(std::io::Error::other(reason))
        })?;
        Ok(Some(Ok(text)))
    }

    /// How many lines there are, all in all.
    fn count(mut self) -> Result<usize> {
        while self.next()?.is_some() {}
        Ok(self.number)
    }
}

impl Corpus {
    /// Calls `take` with each line's pair, in order.
    fn each(&self, mut take: impl FnMut(OrBad<(String, String)>) -> Result<()>) -> Result<()> {
        match self {
            Corpus::Tsv(path) => {
                let mut text = Text::open(path)?;
                while let Some(line) = text.next()? {
                    take(line.and_then(|line| split_tsv(&line)))?;
                }
                Ok(())
            }
            Corpus::Files(source_path, target_path) => {
                let (mut sources, mut targets) = (Text::open(source_path)?, Text::open(target_path)?);
                loop {
                    match (sources.next()?, targets.next()?) {
                        (None, None) => return Ok(()),
                        (Some(source), Some(target)) => take(source.and_then(|source| Ok((source, target?))))?,
                        _ => break,
                    }
                }
                let (ours, theirs) = (sources.count()?, targets.count()?);
                let expected = format!("{ours} lines in {} as in {}", target_path.display(), source_path.display());
                Err(Error::Input { operation: "read parallel text", expected, got: theirs.to_string() })
            }
        }
    }
}

fn split_tsv(line: &str) -> OrBad<(String, String)> {
    match line.split_once('\t') {
        Some((source, target)) if !target.contains('\t') => Ok((source.to_owned(), target.to_owned())),
        _ => Err(format!("{} fields", line.split('\t').count())),
    }
}

impl Data {
    /// Reads a corpus. Sentences may have up to `longest` tokens, end of sentence included.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Input`] for files of different lengths, for a corpus without any pair, and, unless `skip_bad`
    /// counts and leaves them out, for a line that is not a pair, has an empty side or is too long.
    pub fn read(corpus: &Corpus, tokenizer: &Tokenizer, longest: usize, skip_bad: bool) -> Result<Self> {
        let mut data = Data { pairs: Vec::new(), skipped: 0 };
        let refused = |expected: String, got| Error::Input { operation: "read parallel text", expected, got };
        let mut number = 0;
        corpus.each(|line| {
            number += 1;
            match line.and_then(|(source, target)| encode(tokenizer, number, source, target, longest)) {
                Ok(pair) => data.pairs.push(pair),
                Err(_) if skip_bad => data.skipped += 1,
                Err(got) => {
                    let wanted = "a source and a target, each with text";
                    let expected = format!("{wanted} and at most {longest} tokens, in line {number} of {corpus}");
                    return Err(refused(expected, got));
                }
            }
            Ok(())
        })?;
        match data.pairs.is_empty() {
            true => Err(refused(format!("at least one pair in {corpus}"), "none".into())),
            false => Ok(data),
        }
    }

    /// The pairs in the order of the file.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Lines that were left out.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// A hash of all ids (64-bit FNV-1a), by which a resumed run knows its data again.
    pub fn hash(&self) -> u64 {
        let ids = self.pairs.iter().flat_map(|pair| pair.source.iter().chain(&pair.target));
        ids.fold(0xcbf2_9ce4_8422_2325, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// The batches of an epoch, as pairs' numbers: in random order, each as large as `tokens` on either side allows, a sentence
    /// of more alone. A function of seed and epoch.
    pub fn batches(&self, tokens: usize, seed: u64, epoch: u32) -> Vec<Vec<u32>> {
        let key = |pair: u32| philox(seed, [epoch, pair, 0, (Purpose::Order as u32) << 28]);
        let mut order: Vec<u32> = (0..self.pairs.len() as u32).collect();
        order.sort_by_cached_key(|pair| (key(*pair), *pair));
        let mut batches: Vec<Vec<u32>> = Vec::new();
        let mut used = (usize::MAX, usize::MAX);
        for number in order {
            let Pair { source, target, .. } = &self.pairs[number as usize];
            let after = (used.0.saturating_add(source.len()), used.1.saturating_add(target.len()));
            match batches.last_mut() {
                Some(batch) if after.0 <= tokens && after.1 <= tokens => {
                    batch.push(number);
                    used = after;
                }
                _ => {
                    batches.push(vec![number]);
                    used = (source.len(), target.len());
                }
            }
        }
        batches
    }
}

fn encode(tokenizer: &Tokenizer, line: u64, source_text: String, text: String, longest: usize) -> Result<Pair, String> {
    let (source, target) = (tokenizer.encode_source(&source_text), tokenizer.encode_target(&text));
    for (side, ids) in [("source", &source), ("target", &target)] {
        match ids.len() {
            0 | 1 => return Err(format!("an empty {side}")),
            length if length > longest => return Err(format!("a {side} of {length} tokens")),
            _ => {}
        }
    }
    Ok(Pair { source, target, text, source_text, line })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de");
        Tokenizer::open(&dir).expect("the demo model is there")
    }

    fn read(lines: &str, skip_bad: bool) -> Result<Data> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("text.tsv");
        std::fs::write(&path, lines).expect("written");
        Data::read(&Corpus::Tsv(path), &tokenizer(), 8, skip_bad)
    }

    #[test]
    fn bad_lines_are_refused_by_number_or_counted() {
        for (lines, number, got) in [
            ("A dog.\tEin Hund.\nA cat.\n", 2, "1 fields"),
            ("A dog.\tEin Hund.\tx\n", 1, "3 fields"),
            ("A dog.\t \n", 1, "an empty target"),
            ("\tEin Hund.\n", 1, "an empty source"),
            ("A dog.\tEin Hund.\nA dog.\tein ein ein ein ein ein ein ein\n", 2, "a target of 9 tokens"),
        ] {
            let message = read(lines, false).unwrap_err().to_string();
            assert!(message.contains(&format!("in line {number} of ")) && message.ends_with(got), "{message}");
        }
        let data = read("A dog.\tEin Hund.\nA cat.\n\t\nA cat.\tEine Katze.\n", true).expect("two pairs");
        assert_eq!((data.pairs().len(), data.skipped()), (2, 2));
        assert!(read("A cat.\n", true).unwrap_err().to_string().contains("at least one pair"));
    }

    #[test]
    fn files_of_different_lengths_are_refused_with_both_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, target) = (dir.path().join("a.en"), dir.path().join("a.de"));
        std::fs::write(&source, "A dog.\nA cat.\n").expect("written");
        std::fs::write(&target, "Ein Hund.\n").expect("written");
        let corpus = Corpus::Files(source.clone(), target.clone());
        let message = Data::read(&corpus, &tokenizer(), 8, true).unwrap_err().to_string();
        let expected = format!("expected 2 lines in {} as in {}, got 1", target.display(), source.display());
        assert!(message.ends_with(&expected), "{message}");
        std::fs::write(&target, b"Ein Hund.\n\xff\n").expect("written");
        let message = Data::read(&corpus, &tokenizer(), 8, true).unwrap_err().to_string();
        assert!(message.contains("line 2: expected UTF-8, got an invalid byte; "), "{message}");
    }

    #[test]
    fn an_epoch_holds_every_pair_once_within_the_batch_size() {
        let lines: String =
            (0..100).map(|i| format!("{}\t{}\n", "a ".repeat(i % 5 + 1), "b ".repeat(i % 7 + 1))).collect();
        let data = read(&lines, false).expect("pairs");
        let batches = data.batches(20, 3, 1);
        let mut all: Vec<u32> = batches.concat();
        assert_ne!(all, (0..100).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let size = |batch: &[u32], side: fn(&Pair) -> usize| -> usize {
            batch.iter().map(|i| side(&data.pairs()[*i as usize])).sum()
        };
        for batch in &batches {
            assert!(size(batch, |p| p.source.len()) <= 20 && size(batch, |p| p.target.len()) <= 20);
        }
        assert_eq!(data.batches(20, 3, 1), batches);
        assert_ne!(data.batches(20, 3, 2), batches);
        assert_ne!(data.batches(20, 4, 1), batches);
        // A pair larger than a batch stands alone.
        assert!(data.batches(1, 3, 1).iter().all(|batch| batch.len() == 1));
    }
}
