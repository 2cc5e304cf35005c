//! Values of options that have a form of their own, with the library's error, said once.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::Error;

/// Reads values by a function of the library's.
#[derive(Clone)]
pub(super) struct Reader<T>(fn(&str) -> Result<T, Error>);

/// Reads values by this function, as in `reader(str::parse::<Device>)`.
pub(super) fn reader<T>(read: fn(&str) -> Result<T, Error>) -> Reader<T> {
    Reader(read)
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Reader<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        // The library's own parser would put its words around ours.
        let refuse = |error: Error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n"));
        (self.0)(&value.to_string_lossy()).map_err(|error| refuse(error).with_cmd(command))
    }
}
