//! How values of options are read: by a function of the library's, whose error is said once, and as finite numbers.

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

/// Reads numbers that are finite; whether one is in its range depends on other options, and is checked with them.
#[derive(Clone, Copy)]
pub(super) struct Finite;

/// Reads finite numbers: no others can be written as JSON.
pub(super) fn finite() -> Finite {
    Finite
}

impl TypedValueParser for Finite {
    type Value = f32;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<f32, clap::Error> {
        let text = value.to_string_lossy();
        text.parse::<f32>().ok().filter(|number| number.is_finite()).ok_or_else(|| {
            let option = arg.and_then(Arg::get_long).unwrap_or("value");
            let message = format!("option {option}: expected a finite number, got {text}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
