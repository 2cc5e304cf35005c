//! The fields of a request in JSON or in a form, read one by one.

use serde_json::{Map, Value};

use super::failure::Failure;

/// The fields of a request that are text or numbers, and how to read them.
pub(super) struct Given(pub Map<String, Value>);

impl Given {
    pub fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", other)),
        }
    }

    pub fn needed(&self, name: &str) -> Result<&str, Failure> {
        self.text(name)?
            .ok_or_else(|| Failure::bad("input", format!("read the request: expected a field \"{name}\", got none")))
    }

    /// A text or several, and whether they came as an array.
    pub fn texts(&self, name: &str) -> Result<(Vec<String>, bool), Failure> {
        match self.0.get(name) {
            Some(Value::String(text)) => Ok((vec![text.clone()], false)),
            Some(Value::Array(values)) => {
                let text = |value: &Value| match value {
                    Value::String(text) => Ok(text.clone()),
                    other => Err(wrong(name, "strings", other)),
                };
                Ok((values.iter().map(text).collect::<Result<_, _>>()?, true))
            }
            Some(other) if !other.is_null() => Err(wrong(name, "a string or an array of strings", other)),
            _ => Err(Failure::bad("input", format!("read the request: expected a field \"{name}\", got none"))),
        }
    }

    /// Names: an array of them, or a text of some between commas.
    pub fn names(&self, name: &str) -> Result<Vec<String>, Failure> {
        if self.0.get(name).is_none_or(Value::is_null) {
            return Ok(Vec::new());
        }
        let (texts, _) = self.texts(name)?;
        let names = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
        Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Whether something is asked for.
    pub fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(false),
            Some(Value::Bool(true)) => Ok(true),
            Some(Value::String(text)) if ["1", "true"].contains(&text.as_str()) => Ok(true),
            Some(Value::String(text)) if ["0", "false"].contains(&text.as_str()) => Ok(false),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    /// A number, which a form says in digits.
    pub fn count(&self, name: &str) -> Result<Option<usize>, Failure> {
        let read = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        read.map(Some).ok_or_else(|| wrong(name, "a whole number, 0 or more", &self.0[name]))
    }
}

fn wrong(name: &str, expected: &str, got: &Value) -> Failure {
    Failure::bad("input", format!("read the request: {name}: expected {expected}, got {got}"))
}
