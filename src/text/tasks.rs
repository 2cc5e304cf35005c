//! What a model with several tasks is told in front of a text, as T5 is (Raffel et al. 2020): the `task_specific_params` of its
//! `config.json`, as in `"translation_en_to_de": {"prefix": "translate English to German: "}`.

use std::path::Path;

use serde_json::Value;

use super::iso::Tag;
use crate::{Error, Result, read};

/// The tasks of a model, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks(Vec<(String, String)>);

impl Tasks {
    /// Those that a model directory names; none where it has no `config.json`.
    ///
    /// # Errors
    /// `Json` for a file that is not JSON.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config: Value = if path.exists() { read::json(&path)? } else { Value::Null };
        let tasks = config["task_specific_params"].as_object().into_iter().flatten();
        let named = tasks.filter_map(|(name, task)| Some((name.clone(), task["prefix"].as_str()?.to_owned())));
        Ok(Tasks(named.collect()))
    }

    /// Names and prefixes, in the order of the file.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, prefix)| (name.as_str(), prefix.as_str()))
    }

    /// The translations among them: source and target, and the prefix.
    pub fn translations(&self) -> impl Iterator<Item = ([&str; 2], &str)> {
        self.all().filter_map(|(name, prefix)| {
            let (source, target) = name.strip_prefix("translation_")?.split_once("_to_")?;
            Some(([source, target], prefix))
        })
    }

    /// Whether any of them is a translation from one language into another.
    pub fn translate(&self) -> bool {
        self.translations().next().is_some()
    }

    /// The prefixes of the translations from and into these languages; codes may be of any kind.
    fn asked(&self, source: Option<&str>, target: Option<&str>) -> impl Iterator<Item = &str> {
        let means = |code: &str, own: &str| {
            let tag = |code| Tag::parse(code).map(|tag: Tag| tag.language);
            code == own || tag(code).is_some_and(|language| Some(language) == tag(own))
        };
        self.translations().filter_map(move |([own_source, own_target], prefix)| {
            let is_asked =
                source.is_none_or(|code| means(code, own_source)) && target.is_none_or(|code| means(code, own_target));
            is_asked.then_some(prefix)
        })
    }

    /// Whether several translations are from and into these languages.
    pub(super) fn are_several(&self, source: Option<&str>, target: Option<&str>) -> bool {
        self.asked(source, target).nth(1).is_some()
    }

    /// What stands in front of a text to translate it from one language into another; codes may be of any kind.
    ///
    /// # Errors
    /// [`Error::Option`] for a pair of languages that no task has, or several have.
    pub fn translation(&self, source: Option<&str>, target: Option<&str>) -> Result<&str> {
        let mut found = self.asked(source, target);
        match (found.next(), found.next()) {
            (Some(prefix), None) => Ok(prefix),
            _ => {
                let pairs: Vec<String> = self.translations().map(|([a, b], _)| format!("{a} to {b}")).collect();
                let expected =
                    format!("a source and a target of the model's tasks ({}), or a prefix", pairs.join(", "));
                let got = format!("{} to {}", source.unwrap_or("none"), target.unwrap_or("none"));
                Err(Error::Option { option: "target-lang", expected, got })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_name_a_task_in_any_code() {
        let task = |name: &str, prefix: &str| (name.to_owned(), prefix.to_owned());
        let tasks = Tasks(vec![
            task("summarization", "summarize: "),
            task("translation_en_to_de", "translate English to German: "),
            task("translation_en_to_fr", "translate English to French: "),
        ]);
        for (source, target, task) in [
            (Some("en"), Some("de"), "German"),
            (Some("eng"), Some("de-AT"), "German"),
            (None, Some("fr"), "French"),
            (Some("EN-GB"), Some("fra"), "French"),
        ] {
            let found = tasks.translation(source, target).expect("a task");
            assert!(found.contains(task), "{source:?} {target:?}: {found}");
        }
        for (source, target) in [(Some("de"), Some("en")), (Some("en"), None), (None, Some("nl")), (None, None)] {
            let message = tasks.translation(source, target).expect_err("no task").to_string();
            assert!(message.contains("en to de, en to fr"), "{message}");
        }
        assert!(tasks.translate() && !Tasks::default().translate());
    }
}
