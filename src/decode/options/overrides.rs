//! The options that a caller sets, over a preset and over what others have set.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::DecodeOptions;
use crate::{Error, Result};

/// Some options by name, each with its value: fields of [`DecodeOptions`], as JSON has them.
///
/// Command line flags, the field `options` of a JSON line and any other source of options come to this; those of a sentence stand
/// over those of all sentences, and all stand over those of the preset that they name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Overrides(Map<String, Value>);

/// Options that mean something with `sample` alone.
const OF_SAMPLES: [&str; 7] = ["samples", "temperature", "top_k", "top_p", "min_p", "epsilon", "seed"];

impl Overrides {
    /// What a JSON object, or a structure that serializes to one, sets.
    ///
    /// # Errors
    /// [`Error::Input`] for anything else.
    pub fn new(object: impl Serialize) -> Result<Self> {
        match serde_json::to_value(object) {
            Ok(Value::Object(fields)) => Ok(Overrides(fields)),
            Ok(other) => Err(refuse("an object of options", other.to_string())),
            Err(error) => Err(refuse("an object of options", error.to_string())),
        }
    }

    /// What a structure of optional fields sets: those that are there.
    ///
    /// # Errors
    /// As [`Overrides::new`].
    pub fn set_in(structure: impl Serialize) -> Result<Self> {
        let Overrides(mut fields) = Self::new(structure)?;
        fields.retain(|_, value| !value.is_null());
        Ok(Overrides(fields))
    }

    /// The value that is set for an option.
    pub fn get(&self, option: &str) -> Option<&Value> {
        self.0.get(option)
    }

    /// Sets an option, by the name of its field.
    pub fn set(&mut self, option: &str, value: impl Into<Value>) {
        self.0.insert(option.to_owned(), value.into());
    }

    /// The names of the options that are set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// These over `below`.
    pub fn over(&self, below: &Overrides) -> Overrides {
        let mut both = below.clone();
        both.0.extend(self.0.clone());
        both
    }

    /// The value of one option as it is read.
    pub(crate) fn read<T: DeserializeOwned>(&self, option: &str) -> Result<Option<T>> {
        let read = |value: &Value| T::deserialize(value).map_err(|error| wrong(option, &error.to_string()));
        self.get(option).map(read).transpose()
    }
}

impl DecodeOptions {
    /// These options with what is set over them, not yet checked together. Where that says `"sample": false`, what it says of samples
    /// is passed over: it was set for other sentences.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that no option has, and for a value of another type than the option's.
    pub fn overridden(&self, overrides: &Overrides) -> Result<DecodeOptions> {
        let Overrides(mut all) = Overrides::new(self)?;
        for (option, value) in &overrides.0 {
            if all.insert(option.clone(), value.clone()).is_none() {
                return Err(refuse("names of options", format!("\"{option}\"")));
            }
            // Alone, so that an error is about this one.
            let alone = Map::from_iter([(option.clone(), value.clone())]);
            DecodeOptions::deserialize(Value::Object(alone)).map_err(|error| wrong(option, &error.to_string()))?;
        }
        if overrides.get("sample") == Some(&Value::Bool(false)) {
            OF_SAMPLES.iter().for_each(|option| drop(all.remove(*option)));
        }
        let read =
            DecodeOptions::deserialize(Value::Object(all)).map_err(|error| refuse("options", error.to_string()))?;
        let DecodeOptions { bans, ensemble, preset_stop, .. } = self.clone();
        Ok(DecodeOptions { bans, ensemble, preset_stop, ..read })
    }
}

fn refuse(expected: &str, got: String) -> Error {
    Error::Input { operation: "read options", expected: expected.to_owned(), got }
}

/// The error of a value that is not of the option's type, in words that do not name Rust's types.
fn wrong(option: &str, message: &str) -> Error {
    let (got, expected) = message.split_once(", expected ").unwrap_or((message, "another value"));
    let got = got.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let expected = match expected {
        "usize" | "u32" | "u64" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        other => other,
    };
    refuse(&format!("{option}: {}", expected.replace('`', "")), got.replace('`', ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LengthPenalty, MaxLength, Stop};

    fn overrides(json: &str) -> Overrides {
        serde_json::from_str(json).expect("an object")
    }

    #[test]
    fn what_is_set_stands_over_what_was_there() {
        let base = DecodeOptions { alpha: 0.1, min_length: 3, ensemble: vec![0.5, 0.5], ..DecodeOptions::default() };
        let set =
            overrides(r#"{"beam_size": 8, "stop": "exact", "length_penalty": "power-of-all", "max_length": "2*S"}"#);
        let read = base.overridden(&set).expect("all of them are options");
        let expected = DecodeOptions {
            beam_size: 8,
            stop: Some(Stop::Exact),
            length_penalty: LengthPenalty::PowerOfAll,
            max_length: MaxLength::Relative { factor: 2.0, offset: 0 },
            ..base.clone()
        };
        assert_eq!(read, expected);
        assert_eq!(base.overridden(&Overrides::default()).ok().as_ref(), Some(&base));
    }

    #[test]
    fn every_option_survives_being_written_and_read() {
        let base = DecodeOptions::default().with(|o| {
            (o.alpha, o.word_reward, o.seed, o.top_p) = (0.1, -1e-7, u64::MAX, 0.3);
            (o.stop, o.penalize_logits, o.forced_bos) = (Some(Stop::Top), Some(true), Some(7));
            (o.contrastive_weight, o.mbr) = (Some(0.1), Some(crate::metrics::Utility::Bleu));
        });
        let json = serde_json::to_string(&base).expect("no map is written");
        assert_eq!(serde_json::from_str::<DecodeOptions>(&json).ok().as_ref(), Some(&base));
        assert_eq!(base.overridden(&Overrides::default()).ok().as_ref(), Some(&base));
    }

    #[test]
    fn names_and_types_are_checked() {
        for (json, message) in [
            (r#"{"beem_size": 2}"#, "read options: expected names of options, got \"beem_size\""),
            (
                r#"{"beam_size": 1.5}"#,
                "read options: expected beam_size: a whole number, 0 or more, got floating point 1.5",
            ),
            (r#"{"beam_size": -1}"#, "read options: expected beam_size: a whole number, 0 or more, got integer -1"),
            (r#"{"alpha": [1]}"#, "read options: expected alpha: a number, got sequence"),
            (r#"{"shrink": 1}"#, "read options: expected shrink: true or false, got integer 1"),
            (r#"{"bans": null}"#, "read options: expected names of options, got \"bans\""),
            (r#"{"max_length": "S"}"#, "got string \"S\""),
        ] {
            let read = DecodeOptions::default().overridden(&overrides(json));
            let error = read.map_err(|error| error.to_string()).expect_err("it is wrong");
            assert!(error.contains(message), "{json}: {error}");
        }
        let stop = DecodeOptions::default().overridden(&overrides(r#"{"stop": "never"}"#)).map_err(|e| e.to_string());
        assert!(stop.as_ref().is_err_and(|e| e.contains("one of first, heuristic, exact, top")), "{stop:?}");
        assert!(serde_json::from_str::<DecodeOptions>(r#"{"beem_size": 2}"#).is_err());
    }

    #[test]
    fn a_sentence_that_is_not_sampled_has_nothing_of_samples() {
        let of_all = overrides(r#"{"sample": true, "samples": 4, "top_k": 5, "n_best": 1}"#);
        let read = |own: &str| DecodeOptions::default().overridden(&overrides(own).over(&of_all)).expect("options");
        let searched = read(r#"{"sample": false, "beam_size": 2}"#);
        assert_eq!(searched, DecodeOptions { beam_size: 2, ..DecodeOptions::default() });
        let drawn = read(r#"{"top_k": 6}"#);
        assert_eq!(drawn, DecodeOptions { sample: true, samples: 4, top_k: 6, ..DecodeOptions::default() });
    }
}
