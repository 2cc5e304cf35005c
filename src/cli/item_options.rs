//! Options of one sentence: the field `options` of a JSON line, which stand over those of the command line.

use clap::{Args, Command, FromArgMatches};
use indexmap::IndexMap;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::search_options::SearchArguments;
use crate::{DecodeOptions, Error, Result, Translator};

/// Options that concern all lines: they open models and read files.
const OF_ALL: [&str; 6] = ["amateur", "bad_texts", "ensemble", "ensemble_weights", "shortlist", "suppress"];

/// Reads the options of sentences; they have the names, values and limits of those on the command line.
pub(super) struct ItemOptions<'a> {
    translator: &'a Translator,
    arguments: &'a SearchArguments,
    /// What `arguments` say.
    of_all: &'a DecodeOptions,
    command: Command,
}

impl<'a> ItemOptions<'a> {
    pub(super) fn new(translator: &'a Translator, arguments: &'a SearchArguments, of_all: &'a DecodeOptions) -> Self {
        let command = Command::new("options").no_binary_name(true).disable_help_flag(true);
        let command = SearchArguments::augment_args_for_update(command);
        ItemOptions { translator, arguments, of_all, command }
    }

    /// The options of a sentence that brings this object of some.
    ///
    /// # Errors
    /// [`Error::Input`] for what is no option or has no such value, [`Error::Option`] for what does not go together.
    pub(super) fn resolve(&mut self, given: &RawValue) -> Result<Box<DecodeOptions>> {
        let given: IndexMap<String, Value> =
            serde_json::from_str(given.get()).map_err(|_| refuse("an object of options", given.get().to_owned()))?;
        let flags = given.iter().map(|(name, value)| self.flag(name, value)).collect::<Result<Vec<String>>>()?;
        let told = |error: clap::Error| {
            let message = error.to_string();
            let first = message.split("\n\n").next().unwrap_or_default();
            let reason: Vec<&str> = first.lines().map(|line| line.trim().trim_start_matches("error: ")).collect();
            refuse("options as on the command line", reason.join(" "))
        };
        let mut matches = self.command.try_get_matches_from_mut(flags).map_err(told)?;
        let mut arguments = self.arguments.clone();
        arguments.update_from_arg_matches_mut(&mut matches).map_err(told)?;
        let mut options = arguments.resolve_with(self.translator, self.of_all.bans.clone())?;
        options.ensemble.clone_from(&self.of_all.ensemble);
        Ok(Box::new(options))
    }

    /// The option as it would stand on the command line.
    fn flag(&self, name: &str, value: &Value) -> Result<String> {
        let known = self.command.get_arguments().find(|known| known.get_id() == name);
        let Some(long) = known.and_then(|known| known.get_long()).filter(|_| !OF_ALL.contains(&name)) else {
            let expected = match known {
                Some(_) => "options of one sentence, beside one of all sentences",
                None => "names of options",
            };
            return Err(refuse(expected, format!("{name:?}")));
        };
        match value {
            Value::String(text) => Ok(format!("--{long}={text}")),
            Value::Number(_) | Value::Bool(_) => Ok(format!("--{long}={value}")),
            _ => Err(refuse("a number, a string, true or false", format!("{name} = {value}"))),
        }
    }
}

fn refuse(expected: &str, got: String) -> Error {
    Error::Input { operation: "read options", expected: expected.to_owned(), got }
}
