//! How numbers on the command line are read: counts by their ranges, which the help names, and finite numbers.

use std::ffi::OsStr;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::counts::named;

/// Reads counts of a range.
#[derive(Clone, Debug)]
pub(super) struct Count<T> {
    range: RangeInclusive<T>,
}

/// Reads counts of this range.
pub(super) fn count<T>(range: RangeInclusive<T>) -> Count<T> {
    Count { range }
}

/// Reads any number of 64 bits, as seeds are.
pub(super) fn seed() -> Count<u64> {
    count(0..=u64::MAX)
}

impl<T> TypedValueParser for Count<T>
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let read = value.to_str().and_then(|text| text.parse().ok()).filter(|value| self.range.contains(value));
        read.ok_or_else(|| refuse(command, arg, &named(&self.range), value))
    }

    /// The range in words: [`name_range`] finds it here.
    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(std::iter::once(PossibleValue::new(named(&self.range)))))
    }
}

/// Reads numbers that are finite; whether one is in its range depends on other options, and is checked with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finite<T>(std::marker::PhantomData<T>);

pub(super) fn finite<T>() -> Finite<T> {
    Finite(std::marker::PhantomData)
}

impl<T> TypedValueParser for Finite<T>
where
    T: FromStr + Into<f64> + Copy + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let read = value.to_str().and_then(|text| text.parse::<T>().ok());
        let read = read.filter(|number| (*number).into().is_finite());
        read.ok_or_else(|| refuse(command, arg, "a finite number", value))
    }
}

/// Adds its range to an option's help, if it is a count.
pub(super) fn name_range(arg: Arg) -> Arg {
    let Some(range) = range_of(&arg) else { return arg };
    let named = |help: &dyn Display| format!("{help} [range: {range}]");
    let (help, long_help) = (arg.get_help().map(|help| named(help)), arg.get_long_help().map(|help| named(help)));
    let arg = arg.hide_possible_values(true).help(help.unwrap_or_default());
    match long_help {
        Some(long_help) => arg.long_help(long_help),
        None => arg,
    }
}

/// The range of a count in words.
fn range_of(arg: &Arg) -> Option<String> {
    let mut possible = arg.get_value_parser().possible_values()?;
    let (first, second) = (possible.next()?, possible.next());
    (second.is_none() && first.get_name().contains(" to ")).then(|| first.get_name().to_owned())
}

/// The error, as the library words it.
fn refuse(command: &Command, arg: Option<&Arg>, expected: &str, got: &OsStr) -> clap::Error {
    let option = arg.and_then(Arg::get_long).unwrap_or("value");
    let message = format!("option {option}: expected {expected}, got {}\n", got.to_string_lossy());
    clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
}
