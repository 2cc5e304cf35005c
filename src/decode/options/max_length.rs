//! How long a translation may become.

use std::fmt;
use std::str::FromStr;

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result};

/// The length at which a hypothesis is ended, in generated tokens, end of sentence included.
///
/// Written as text, `96`, `2*S` or `1.5*S+10`; in JSON a number of tokens may stand for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxLength {
    /// A number of tokens.
    Absolute(usize),
    /// `floor(factor * S) + offset`, S the source's tokens, end of sentence included.
    Relative {
        /// The factor.
        factor: f32,
        /// The offset.
        offset: usize,
    },
}

impl Default for MaxLength {
    fn default() -> Self {
        MaxLength::Relative { factor: 1.5, offset: 10 }
    }
}

impl MaxLength {
    /// The limit for a source of `src_len` tokens, within a position table of `table` rows.
    pub fn resolve(self, src_len: usize, table: usize) -> usize {
        let wanted = match self {
            MaxLength::Absolute(tokens) => tokens,
            // The cast saturates: a huge factor ends at the table.
            MaxLength::Relative { factor, offset } => {
                ((f64::from(factor) * src_len as f64).floor() as usize).saturating_add(offset)
            }
        };
        wanted.clamp(1, table)
    }
}

impl fmt::Display for MaxLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxLength::Absolute(tokens) => write!(f, "{tokens}"),
            MaxLength::Relative { factor, offset } => write!(f, "{factor}*S+{offset}"),
        }
    }
}

/// What [`MaxLength`] is written as.
const FORM: &str = "a number of tokens, or a*S+b as in 1.5*S+10";

impl FromStr for MaxLength {
    type Err = Error;

    /// Parses `96`, `2*S` or `1.5*S+10`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Option { option: "max-length", expected: FORM.into(), got: format!("\"{text}\"") };
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((factor, rest)) = compact.split_once("*S") else {
            return compact.parse().map(MaxLength::Absolute).map_err(|_| wrong());
        };
        let offset = match rest {
            "" => Some(0),
            _ => rest.strip_prefix('+').and_then(|offset| offset.parse().ok()),
        };
        match (factor.parse::<f32>(), offset) {
            (Ok(factor), Some(offset)) if factor.is_finite() && factor >= 0.0 => {
                Ok(MaxLength::Relative { factor, offset })
            }
            _ => Err(wrong()),
        }
    }
}

impl Serialize for MaxLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MaxLength::Absolute(tokens) => serializer.serialize_u64(*tokens as u64),
            relative @ MaxLength::Relative { .. } => serializer.collect_str(relative),
        }
    }
}

impl<'de> Deserialize<'de> for MaxLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = MaxLength;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }

            fn visit_u64<E: de::Error>(self, tokens: u64) -> Result<MaxLength, E> {
                let tokens = usize::try_from(tokens);
                tokens.map(MaxLength::Absolute).map_err(|_| E::invalid_value(Unexpected::Other("more"), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxLength, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_length_reads_what_it_prints() {
        for (text, value) in [
            ("96", MaxLength::Absolute(96)),
            ("1.5*S+10", MaxLength::Relative { factor: 1.5, offset: 10 }),
            ("2*S+0", MaxLength::Relative { factor: 2.0, offset: 0 }),
        ] {
            assert_eq!(text.parse::<MaxLength>().ok(), Some(value));
            assert_eq!(value.to_string(), text);
            let json = serde_json::to_string(&value).expect("no map is written");
            assert_eq!(serde_json::from_str::<MaxLength>(&json).ok(), Some(value), "{json}");
        }
        assert_eq!(serde_json::from_str::<MaxLength>("\"96\"").ok(), Some(MaxLength::Absolute(96)));
        assert_eq!("2*S".parse::<MaxLength>().ok(), Some(MaxLength::Relative { factor: 2.0, offset: 0 }));
        for bad in ["", "S", "*S", "1.5*S-3", "-1*S", "nan*S", "1.5*S+", "1e99", "-4", "4.5"] {
            assert!(bad.parse::<MaxLength>().is_err(), "{bad}");
            assert!(serde_json::from_str::<MaxLength>(&format!("\"{bad}\"")).is_err(), "{bad}");
        }
        for bad in ["-4", "4.5", "true", "null", "[]"] {
            assert!(serde_json::from_str::<MaxLength>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn max_length_stays_within_the_table() {
        assert_eq!(MaxLength::default().resolve(7, 256), 20);
        assert_eq!(MaxLength::default().resolve(250, 256), 256);
        assert_eq!(MaxLength::Relative { factor: f32::MAX, offset: usize::MAX }.resolve(9, 256), 256);
        assert_eq!(MaxLength::Relative { factor: 0.0, offset: 0 }.resolve(9, 256), 1);
    }
}
