//! The inputs of a job: which files, and which of them are whose.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Compression;
use crate::files::{io, open_regular};
use crate::{Error, Result};

/// A file that becomes a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where it is.
    pub path: PathBuf,
    /// Its path within the inputs, with `/` between directories.
    pub name: String,
}

/// Endings of names that say how a file is read.
const FORMS: [&str; 3] = ["txt", "tsv", "jsonl"];

/// Endings of names of HTML documents, whose translations are HTML documents.
const PAGES: [&str; 3] = [".html", ".htm", ".xhtml"];

impl Unit {
    /// The name of its part: its own, where an ending that says how it is read, `.txt`, `.tsv` or `.jsonl`, gives way to how the part
    /// is written, if that is another way, and so does that of a compression.
    pub fn part(&self, written: &str, compression: Compression) -> String {
        let plain = self.plain_name();
        let stem = match plain.rsplit_once('.') {
            Some((stem, ending)) if FORMS.contains(&ending) && !stem.is_empty() && !stem.ends_with('/') => Some(stem),
            _ => None,
        };
        let name = match (stem, written) {
            (Some(stem), written) => format!("{stem}.{written}"),
            // As in corpus.en: it says no more than that it is text.
            (None, "txt") => plain.to_owned(),
            (None, "html") if PAGES.iter().any(|ending| plain.ends_with(ending)) => plain.to_owned(),
            (None, written) => format!("{plain}.{written}"),
        };
        name + compression.extension()
    }

    /// The ending that says how it is read, if its name has one of those.
    pub fn form(&self) -> Option<&'static str> {
        let (_, ending) = self.plain_name().rsplit_once('.')?;
        FORMS.into_iter().find(|form| *form == ending)
    }

    fn plain_name(&self) -> &str {
        self.name.strip_suffix(Compression::of_name(&self.name).extension()).unwrap_or(&self.name)
    }
}

/// Whether a path stands for several files: a directory, or a pattern where there is no file of that name.
pub fn is_many(input: &Path) -> bool {
    input.is_dir() || (is_pattern(input) && input.symlink_metadata().is_err())
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// The files of a directory and the directories in it, or those that fit a pattern such as `data/*/part-*.jsonl.gz`, in the order of
/// their names. Hidden files and directories, whose names begin with a dot, are none of them.
///
/// # Errors
/// [`Error::Io`] for what is neither a file nor a directory, and for a file that is still being written; [`Error::Input`] where there
/// are no files.
pub fn plan(input: &Path) -> Result<Vec<Unit>> {
    let mut units = match input.is_dir() {
        true => {
            let mut units = Vec::new();
            walk(input, input, &mut vec![], &mut units)?;
            units
        }
        false => matching(input)?,
    };
    units.sort_by(|a, b| a.name.cmp(&b.name));
    match units.is_empty() {
        true => {
            let expected = "at least one file".into();
            Err(Error::Input { operation: "read inputs", expected, got: format!("none in {}", input.display()) })
        }
        false => Ok(units),
    }
}

fn walk(root: &Path, directory: &Path, above: &mut Vec<PathBuf>, units: &mut Vec<Unit>) -> Result<()> {
    let canonical = directory.canonicalize().map_err(io("read", directory))?;
    if above.contains(&canonical) {
        let reason = "a directory within itself, by a link";
        return Err(io("read", directory)(std::io::Error::new(ErrorKind::InvalidInput, reason)));
    }
    above.push(canonical);
    for entry in std::fs::read_dir(directory).map_err(io("read", directory))? {
        let path = entry.map_err(io("read", directory))?.path();
        match () {
            () if is_hidden(&path) => {}
            () if path.is_dir() => walk(root, &path, above, units)?,
            () => units.push(unit(root, path)?),
        }
    }
    above.pop();
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn matching(pattern: &Path) -> Result<Vec<Unit>> {
    let wrong =
        |got: String| Error::Input { operation: "read inputs", expected: "a pattern of file names".into(), got };
    let text = pattern.to_str().ok_or_else(|| wrong(pattern.display().to_string()))?;
    // Names count from the last directory that the pattern names outright.
    let root: PathBuf = pattern.iter().take_while(|part| !is_pattern(Path::new(part))).collect();
    let options =
        glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..Default::default() };
    let found = glob::glob_with(text, options).map_err(|error| wrong(format!("{text}: {error}")))?;
    let mut units = Vec::new();
    for path in found {
        let path = path.map_err(|error| {
            let place = error.path().to_path_buf();
            io("read", &place)(error.into())
        })?;
        if !path.is_dir() {
            units.push(unit(&root, path)?);
        }
    }
    Ok(units)
}

fn unit(root: &Path, path: PathBuf) -> Result<Unit> {
    let refuse = |reason: &str| io("read", &path)(std::io::Error::new(ErrorKind::InvalidInput, reason.to_owned()));
    let inner = path.strip_prefix(root).unwrap_or(&path);
    let parts: Option<Vec<&str>> = inner.iter().map(|part| part.to_str()).collect();
    let name = parts.ok_or_else(|| refuse("expected a name in UTF-8"))?.join("/");
    if name.ends_with(".partial") {
        return Err(refuse("expected whole files, got one that another command is writing, or has left"));
    }
    open_regular("read", &path)?;
    Ok(Unit { path, name })
}

/// The share of a job that one of several commands does: of the files in order the I-th, and every N-th behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// 1..=of.
    pub number: usize,
    /// At least 1.
    pub of: usize,
}

impl Shard {
    /// Whether the unit at this place, counted from 0, is in this share.
    pub fn has(self, at: usize) -> bool {
        at % self.of == self.number - 1
    }
}

impl Default for Shard {
    fn default() -> Self {
        Shard { number: 1, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Shard { number, of }),
            _ => Err(Error::Option {
                option: "shard",
                expected: "I/N with I in 1 to N, as in 3/64".into(),
                got: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf) {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("created");
        std::fs::write(path, "x\n").expect("written");
    }

    fn names(input: &Path) -> Vec<String> {
        plan(input).expect("files").into_iter().map(|unit| unit.name).collect()
    }

    #[test]
    fn files_are_found_in_order_in_directories_and_by_patterns() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        ["b.txt", "a.txt", "sub/c.jsonl.gz", "sub/deep/d", ".hidden", ".git/config", "sub/[x].txt"]
            .iter()
            .for_each(|name| write(root.join(name)));
        assert_eq!(names(root), ["a.txt", "b.txt", "sub/[x].txt", "sub/c.jsonl.gz", "sub/deep/d"]);
        assert_eq!(names(&root.join("*.txt")), ["a.txt", "b.txt"]);
        assert_eq!(names(&root.join("*/*.gz")), ["sub/c.jsonl.gz"]);
        assert_eq!(names(&root.join("sub/*.gz")), ["c.jsonl.gz"]);
        assert_eq!(names(&root.join("**/d")), ["sub/deep/d"]);
        assert_eq!(names(&root.join("[ab].txt")), ["a.txt", "b.txt"]);
        assert!(is_many(root) && is_many(&root.join("*.txt")));
        assert!(!is_many(&root.join("a.txt")) && !is_many(&root.join("sub/[x].txt")) && !is_many(&root.join("none")));
        let none = plan(&root.join("*.none")).expect_err("none").to_string();
        assert!(none.contains("expected at least one file"), "{none}");
        assert!(plan(&root.join("[")).is_err());
        write(root.join("e.txt.partial"));
        assert!(plan(root).expect_err("partial").to_string().contains("whole files"));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_files_and_not_in_circles() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        write(root.join("a.txt"));
        std::os::unix::fs::symlink("a.txt", root.join("b.txt")).expect("linked");
        assert_eq!(names(root), ["a.txt", "b.txt"]);
        std::os::unix::fs::symlink("..", root.join("loop")).expect("linked");
        std::os::unix::fs::symlink(root, root.join("again")).expect("linked");
        assert!(plan(root).expect_err("a circle").to_string().contains("within itself"));
    }

    #[test]
    fn a_part_is_called_as_its_input_is() {
        let part = |name: &str, written: &str, compression: Compression| {
            Unit { path: name.into(), name: name.into() }.part(written, compression)
        };
        let (none, gzip) = (Compression::None, Compression::Gzip);
        assert_eq!(part("a.txt", "txt", none), "a.txt");
        assert_eq!(part("sub/a.txt.zst", "jsonl", gzip), "sub/a.jsonl.gz");
        assert_eq!(part("a.jsonl.gz", "txt", none), "a.txt");
        assert_eq!(part("news.en", "txt", none), "news.en");
        assert_eq!(part("news.en.gz", "jsonl", gzip), "news.en.jsonl.gz");
        assert_eq!(part("a.tsv", "nbest", none), "a.nbest");
        assert_eq!(part("sub/txt", "jsonl", none), "sub/txt.jsonl");
        let form = |name: &str| Unit { path: name.into(), name: name.into() }.form();
        assert_eq!((form("a.jsonl.gz"), form("a.tsv"), form("a.en")), (Some("jsonl"), Some("tsv"), None));
    }

    #[test]
    fn shards_share_the_files() {
        let shards: Vec<Shard> = ["1/3", "2/3", "3/3"].map(|text| text.parse().expect("a shard")).into();
        for at in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.has(at)).count(), 1);
        }
        for wrong in ["0/3", "4/3", "3", "1/0", "a/b", "1/2/3", "-1/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
