//! The models that are served, by name and by language pair.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::http::StatusCode;

use super::config::{Config, Source};
use super::failure::Failure;
use super::log;
use crate::document::{Form, Plan, Reading, Rules};
use crate::jsonl::Watch;
use crate::text::iso::Tag;
use crate::text::{TargetPlace, named_pair};
use crate::translator::ModelInfo;
use crate::{DecodeOptions, EngineOptions, Error, Overrides, Result, Sentence, Translator};

/// A model that is being served.
#[derive(Debug)]
pub(super) struct Model {
    pub name: String,
    /// A hash of what its translations depend on.
    pub version: String,
    pub translator: Translator,
    pub watch: Watch,
    /// The options under those of a request, and what they come to.
    pub set: Overrides,
    pub options: DecodeOptions,
    pub languages: Languages,
}

/// The languages that a model translates from and into: all pairs of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Languages {
    pub sources: Vec<Code>,
    pub targets: Vec<Code>,
    /// Whether the model has to be told.
    tells_source: bool,
    tells_target: bool,
}

/// A language, as the model calls it and what that means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Code {
    pub own: String,
    pub tag: Tag,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub model: Arc<Model>,
    /// The languages that its sentences are to name, as the model calls them.
    pub source_lang: Option<String>,
    pub target_lang: Option<String>,
    /// The language of the source as callers know it, where there is but one.
    pub source: Option<Tag>,
}

impl Route {
    /// Gives a sentence the languages of the route where it names none. A model that is not told has none to be asked for by an item alone.
    pub fn complete<O>(&self, sentence: &mut Sentence<O>) {
        sentence.source_lang = sentence.source_lang.take().or_else(|| self.source_lang.clone());
        sentence.target_lang = sentence.target_lang.take().or_else(|| self.target_lang.clone());
    }

    /// Which sentences of a text are translated, each as `like` but for its text.
    pub fn plan(&self, text: &str, form: &Form, like: &Sentence) -> Plan {
        let language = like.source_lang.clone().or_else(|| self.source.as_ref().map(|tag| tag.language.clone()));
        Plan::of(text, form, Rules::of(language.as_deref()), &Reading::new(&self.model.translator, like))
    }
}

/// The models by name, in the order in which they were named.
#[derive(Debug)]
pub(super) struct Models {
    engine: EngineOptions,
    options: Overrides,
    sources: Vec<Source>,
    current: RwLock<Vec<Arc<Model>>>,
    /// Reloads come one after another.
    reloading: Mutex<()>,
}

impl Models {
    pub fn open(config: &Config) -> Result<Self> {
        let Config { engine, options, models: sources, .. } = config.clone();
        let current = sources.iter().map(|source| Model::open(source, &engine, &options)).collect::<Result<_>>()?;
        Ok(Models { engine, options, sources, current: RwLock::new(current), reloading: Mutex::default() })
    }

    pub fn all(&self) -> Vec<Arc<Model>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every engine takes work.
    pub fn are_running(&self) -> bool {
        self.all().iter().all(|model| model.translator.is_running())
    }

    /// Opens all models anew beside the old ones and takes their place; a failure leaves all as they were.
    pub fn reload(&self) -> Result<Vec<Arc<Model>>> {
        let _alone = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let opened: Result<Vec<Arc<Model>>> =
            self.sources.iter().map(|source| Model::open(source, &self.engine, &self.options)).collect();
        let opened = opened?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = opened.clone();
        Ok(opened)
    }

    /// The languages that a text of a request may be in, which may name a model, or the language that it asks for: those of all models
    /// that it may go to, in their order.
    pub fn sources(&self, name: Option<&str>, target: Option<&str>) -> Vec<String> {
        let is_meant = |model: &&Arc<Model>| {
            name.is_none_or(|name| model.name == name)
                && target.is_none_or(|target| best(&model.languages.targets, target).is_some())
        };
        let mut found: Vec<String> = Vec::new();
        for Code { tag, .. } in self.all().iter().filter(is_meant).flat_map(|model| &model.languages.sources) {
            if !found.contains(&tag.language) {
                found.push(tag.language.clone());
            }
        }
        found
    }

    /// The model for a request, which names it, or its languages, or both, or nothing where only one is served.
    pub fn route(&self, name: Option<&str>, source: Option<&str>, target: Option<&str>) -> Result<Route, Failure> {
        let all = self.all();
        let mut candidates: Vec<Arc<Model>> = all.clone();
        if let Some(name) = name {
            candidates.retain(|model| model.name == name);
            if candidates.is_empty() {
                let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
                let message = format!("find the model: expected one of {}, got {name:?}", names.join(", "));
                return Err(Failure::new(StatusCode::NOT_FOUND, "model", message));
            }
        }
        let source = source.filter(|code| !code.eq_ignore_ascii_case("auto"));
        if name.is_none() && target.is_none() && all.len() > 1 {
            let message = "find the model: expected a model or a target language, got neither; several are served";
            return Err(Failure::bad("language_pair", message));
        }
        let mut found = candidates.iter().filter_map(|model| model.route(source, target));
        let route = found.next();
        // Without a word about the source it would be a guess which of them is meant.
        if let (Some(route), None, None) = (&route, name, source)
            && found.any(|other| other.source != route.source)
        {
            let message = "find the model: expected a source language, got none; models for several are served";
            return Err(Failure::bad("language_pair", message));
        }
        route.ok_or_else(|| {
            let pairs: Vec<String> = candidates.iter().map(|model| model.languages.to_string()).collect();
            let named = |code: Option<&str>| code.map_or("any".to_owned(), |code| format!("{code:?}"));
            let got = format!("{} to {}", named(source), named(target));
            Failure::bad(
                "language_pair",
                format!("find the model: expected languages of {}, got {got}", pairs.join("; ")),
            )
        })
    }
}

impl Model {
    fn open(source: &Source, engine: &EngineOptions, options: &Overrides) -> Result<Arc<Model>> {
        let Source { name, dir } = source;
        let translator = Translator::open_with(dir, engine)?;
        for warning in translator.packs().iter().filter_map(|pack| pack.warning.as_deref()) {
            log::event("pack", &format!("{name}: {warning}"));
        }
        let set = options.clone();
        let options = translator.options(&set)?;
        let languages = Languages::of(name, dir, &translator);
        let version = version(dir)?;
        let watch = Watch::new(translator.tokenizer());
        let model = Model { name: name.clone(), version, translator, watch, set, options, languages };
        model.probe()?;
        Ok(Arc::new(model))
    }

    /// Translates a sentence, so that what cannot work is seen before anybody asks for it.
    fn probe(&self) -> Result<()> {
        let code = |codes: &[Code], tells: bool| codes.first().filter(|_| tells).map(|code| code.own.clone());
        let Languages { sources, targets, tells_source, tells_target } = &self.languages;
        let sentence = crate::Sentence {
            source: "1 2 3".to_owned(),
            source_lang: code(sources, *tells_source),
            target_lang: code(targets, *tells_target),
            ..crate::Sentence::default()
        };
        self.translator.submit(sentence, &self.options, crate::Terms::new())?.wait()?;
        Ok(())
    }

    /// The languages of a request, if it has them.
    fn route(self: &Arc<Self>, source: Option<&str>, target: Option<&str>) -> Option<Route> {
        let Languages { sources, targets, tells_source, tells_target } = &self.languages;
        let find = |codes: &[Code], asked: Option<&str>| match asked {
            None => Some(None),
            Some(asked) => best(codes, asked).map(Some),
        };
        let (from, to) = (find(sources, source)?, find(targets, target)?);
        let only = |codes: &[Code]| codes.first().filter(|_| codes.len() == 1).cloned();
        let own = |code: &Option<Code>, tells: bool| code.as_ref().filter(|_| tells).map(|code| code.own.clone());
        Some(Route {
            source_lang: own(&from, *tells_source),
            target_lang: own(&to, *tells_target),
            source: from.or_else(|| only(sources)).map(|code| code.tag),
            model: self.clone(),
        })
    }
}

/// The language that a code means best.
fn best(codes: &[Code], asked: &str) -> Option<Code> {
    if let Some(own) = codes.iter().find(|code| code.own == asked) {
        return Some(own.clone());
    }
    let tag = Tag::parse(asked)?;
    let likeness = |code: &&Code| tag.likeness(&code.tag);
    codes.iter().rev().max_by_key(likeness).filter(|code| likeness(code) > 0).cloned()
}

impl Languages {
    /// A multilingual model's own, or those of its tasks; else those that its tokenizer's configuration names, or its name, as in `en-de`.
    fn of(name: &str, dir: &Path, translator: &Translator) -> Self {
        let code = |own: &str| Some(Code { own: own.to_owned(), tag: Tag::parse(own)? });
        let one = |named: Option<String>| -> Vec<Code> { named.as_deref().and_then(code).into_iter().collect() };
        let [one_source, one_target] = named_pair(dir, name).map(one);
        let tasks: Vec<_> = translator.tokenizer().tasks().translations().map(|(pair, _)| pair).collect();
        let side = |at: usize| -> Vec<Code> {
            let mut named: Vec<&str> = tasks.iter().map(|pair| pair[at]).collect();
            named.sort_unstable();
            named.dedup();
            named.into_iter().filter_map(code).collect()
        };
        let Some(known) = translator.tokenizer().languages() else {
            if !tasks.is_empty() {
                return Languages { sources: side(0), targets: side(1), tells_source: true, tells_target: true };
            }
            return Languages { sources: one_source, targets: one_target, tells_source: false, tells_target: false };
        };
        let all: Vec<Code> = known.all().iter().filter_map(|language| code(&language.code)).collect();
        match known.place {
            TargetPlace::Source => {
                Languages { sources: one_source, targets: all, tells_source: false, tells_target: true }
            }
            _ => Languages { sources: all.clone(), targets: all, tells_source: true, tells_target: true },
        }
    }
}

impl std::fmt::Display for Languages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = |codes: &[Code]| match codes {
            [] => "unknown".to_owned(),
            _ if codes.len() > 5 => format!("{} languages", codes.len()),
            _ => codes.iter().map(|code| code.own.as_str()).collect::<Vec<_>>().join(", "),
        };
        write!(f, "{} to {}", named(&self.sources), named(&self.targets))
    }
}

/// A hash of a model's weights and configuration: the first 64 bits of SHA-256 over its files' contents, in the order of their names.
fn version(dir: &Path) -> Result<String> {
    use std::io::Read;

    use sha2::Digest;

    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { operation: "read", path, source }
    };
    // Names what else there may be, such as weights in another form, out of the hash.
    let weights = ModelInfo::open(dir)?.weights;
    let entries = std::fs::read_dir(dir).map_err(io(dir))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    let is_read = |path: &Path| {
        let ends = |ends: &[&str]| path.extension().is_some_and(|own| ends.iter().any(|end| own == *end));
        path == weights || ends(&["json", "spm", "model", "txt", "safetensors"])
    };
    files.retain(|path| is_read(path));
    files.sort();
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        let mut file = std::fs::File::open(&path).map_err(io(&path))?;
        loop {
            match file.read(&mut buffer).map_err(io(&path))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}
