//! One check before anything is opened for writing: no file is written that is also read, or written twice.
//!
//! Files are told apart by their places on disk, so that neither links nor other names of a file hide it. The paths are those of
//! the parsed command line, whatever the subcommand, and of the files in directories that it names.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Arg, ArgMatches, Command};

use crate::cli::resume;
use crate::cli::stdout;
use crate::files::{Place, partial};
use crate::{Error, Result};

/// The options that name files to be written; every other path is read.
const OUTPUTS: [&str; 6] = ["output", "explain", "json", "csv", "html", "plots"];

/// A file that will be written.
#[derive(Debug)]
struct Output {
    option: &'static str,
    path: PathBuf,
    place: Place,
}

/// What the command writes: models that are found later are held to it then.
static WRITTEN: OnceLock<Vec<Output>> = OnceLock::new();

/// Checks the files of a subcommand, and notes which are written.
///
/// # Errors
/// [`Error::Option`] names the first that would be overwritten.
pub(super) fn check(subcommand: &Command, matches: &ArgMatches) -> Result<()> {
    let mut written: Vec<Output> = Vec::new();
    let mut read = vec![("input", PathBuf::from("/dev/stdin"))];
    for arg in subcommand.get_arguments().filter(|arg| is_path(arg)) {
        let id = arg.get_id().as_str();
        let values = matches.get_raw(id).into_iter().flatten().map(PathBuf::from);
        let values = values.filter(|path| path.as_os_str() != "-");
        match OUTPUTS.into_iter().find(|output| *output == id) {
            // Standard streams are held to all others below.
            Some(_) if matches.get_raw(id).into_iter().flatten().any(|path| stdout::is_open_file(path.as_ref())) => {}
            None => read.extend(values.map(|path| (id, path))),
            Some(option) if subcommand.get_name() == "train" => {
                written.extend(
                    values.flat_map(|directory| written_files(&directory)).filter_map(|path| claim(option, path)),
                );
            }
            // With the name that it has until it is whole, and that of what is noted of it until then.
            Some(option) => {
                let names = |path: PathBuf| [resume::note_of(&path), partial(&path), path];
                written.extend(values.flat_map(names).filter_map(|path| claim(option, path)))
            }
        }
    }
    written.extend(claim("output", PathBuf::from("/dev/stdout")));
    written.sort_by(|a, b| a.place.cmp(&b.place));
    // Sorting keeps the order of what is equal.
    if let Some([one, other]) = written.windows(2).find(|pair| pair[0].place == pair[1].place) {
        let expected = format!("a file other than the {}", one.option);
        return Err(Error::Option { option: other.option, expected, got: other.path.display().to_string() });
    }
    let written = WRITTEN.get_or_init(|| written);
    read.iter().try_for_each(|(id, path)| {
        let what = format!("the {}{}", id.replace('_', " "), if path.is_dir() { "'s" } else { "" });
        files_of(path).iter().try_for_each(|file| refuse(written, &what, file))
    })
}

/// Checks the files of a model directory that the command line does not name.
///
/// # Errors
/// As [`check`].
pub(super) fn check_model(directory: &Path) -> Result<()> {
    let Some(written) = WRITTEN.get() else { return Ok(()) };
    files_of(directory).iter().try_for_each(|file| refuse(written, "the model's", file))
}

/// The files that training writes to a directory.
#[cfg(feature = "train")]
fn written_files(directory: &Path) -> Vec<PathBuf> {
    crate::train::trainer::written_files(directory)
}

#[cfg(not(feature = "train"))]
fn written_files(_: &Path) -> Vec<PathBuf> {
    Vec::new()
}

/// Whether an option takes a path.
pub(super) fn is_path(arg: &Arg) -> bool {
    arg.get_action().takes_values() && arg.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>()
}

fn claim(option: &'static str, path: PathBuf) -> Option<Output> {
    let place = Place::of(&path)?;
    Some(Output { option, path, place })
}

/// The file itself, or those in a directory.
fn files_of(path: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_path_buf()],
    }
}

fn refuse(written: &[Output], what: &str, file: &Path) -> Result<()> {
    let place = Place::of(file);
    match written.iter().find(|output| place.as_ref() == Some(&output.place)) {
        None => Ok(()),
        Some(Output { option, path, .. }) => {
            let expected = format!("a file other than {what}");
            Err(Error::Option { option, expected, got: path.display().to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_read_or_written() {
        let mut seen = 0;
        for subcommand in crate::cli::command().get_subcommands() {
            for arg in subcommand.get_arguments().filter(|arg| is_path(arg)) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let writes =
                    ["Write", "Output", "Draw", "Directory to write"].iter().any(|verb| help.starts_with(verb));
                assert_eq!(writes, OUTPUTS.contains(&arg.get_id().as_str()), "{}: {help}", arg.get_id());
                seen += usize::from(writes);
            }
        }
        assert!(seen >= 9, "{seen} outputs only");
    }
}
