//! Which language a text is in, of those that are served.

use std::time::Instant;

use serde::Serialize;

use super::failure::Failure;
use super::http::Call;
use super::models::Route;

/// A language that a text may be in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Detected {
    /// 0 to 100; 0 if the text is in no language that could be told.
    pub confidence: u8,
    /// ISO 639-1, else -3.
    pub language: String,
}

/// The languages that each text may be in, the likeliest first and at least one. Of a single served language all texts are.
pub(super) async fn detect(
    served: &[String],
    texts: Vec<String>,
    is_html: bool,
    deadline: Instant,
) -> Result<Vec<Vec<Detected>>, Failure> {
    match served {
        [] => Err(Failure::bad("language_pair", "detect the language: expected models that name theirs, got none")),
        [only] => Ok(vec![vec![Detected { confidence: 100, language: only.clone() }]; texts.len()]),
        _ => tell_apart(served.to_vec(), texts, is_html, deadline).await,
    }
}

/// Whether a request leaves it to the service which language a text is in.
pub(super) fn is_left_open(source: Option<&str>) -> bool {
    source.is_none_or(|code| code.eq_ignore_ascii_case("auto"))
}

/// Where each text goes, whose source language may be `"auto"` or not be said; and then the language that it was taken for.
pub(super) async fn routes(
    call: &Call,
    source: Option<&str>,
    target: &str,
    texts: &[String],
    is_html: bool,
) -> Result<Vec<(Route, Option<Detected>)>, Failure> {
    let served = call.server.models.sources(None, Some(target));
    if !is_left_open(source) || served.is_empty() {
        let route = call.route(None, source, Some(target))?;
        return Ok(vec![(route, None); texts.len()]);
    }
    let found = detect(&served, texts.to_vec(), is_html, call.deadline(None)?).await?;
    let route = |mut found: Vec<Detected>| {
        let best = found.swap_remove(0);
        Ok((call.route(None, Some(&best.language), Some(target))?, Some(best)))
    };
    found.into_iter().map(route).collect()
}

#[cfg(not(feature = "detect"))]
async fn tell_apart(served: Vec<String>, _: Vec<String>, _: bool, _: Instant) -> Result<Vec<Vec<Detected>>, Failure> {
    let message = format!(
        "detect the language: expected a source language, of the {} that are served, got none; a build with `--features detect` tells them apart",
        served.len()
    );
    Err(Failure::bad("not_built", message))
}

#[cfg(feature = "detect")]
use with_lingua::tell_apart;

#[cfg(feature = "detect")]
mod with_lingua {
    use std::str::FromStr;

    use lingua::{IsoCode639_1, Language, LanguageDetector, LanguageDetectorBuilder};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::Error;
    use crate::document::{Form, Plan, Reading, Rules};

    /// Characters of a text that are looked at: what they do not tell, more would not.
    const MOST_CHARACTERS: usize = 1000;

    /// One text after the other: the engines need the other processors.
    static TURN: Semaphore = Semaphore::const_new(1);

    pub(super) async fn tell_apart(
        served: Vec<String>,
        texts: Vec<String>,
        is_html: bool,
        deadline: Instant,
    ) -> Result<Vec<Vec<Detected>>, Failure> {
        let known: Vec<(String, Language)> = served.iter().filter_map(|code| Some((code.clone(), of(code)?))).collect();
        if known.is_empty() {
            let message = format!(
                "detect the language: expected one that the detector of this build knows, got {}",
                served.join(", ")
            );
            return Err(Failure::bad("language_pair", message));
        }
        let turn = tokio::time::timeout_at(deadline.into(), TURN.acquire()).await;
        let Ok(Ok(turn)) = turn else { return Err(Error::DeadlineExceeded.into()) };
        let work = move || {
            // Held by the work itself, which goes on if nobody waits for it any more.
            let _turn = turn;
            let languages: Vec<Language> = known.iter().map(|(_, language)| *language).collect();
            let detector = LanguageDetectorBuilder::from_languages(&languages).build();
            let each = |text: &String| match Instant::now() < deadline {
                true => Ok(of_text(&detector, &known, &sample(text, is_html))),
                false => Err(Error::DeadlineExceeded),
            };
            texts.iter().map(each).collect::<Result<Vec<_>, Error>>()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(found) => Ok(found?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The detector's language of a code; Norwegian is Bokmål unless it says otherwise.
    fn of(code: &str) -> Option<Language> {
        let code = if code == "no" { "nb" } else { code };
        IsoCode639_1::from_str(code).ok().map(|code| Language::from_iso_code_639_1(&code))
    }

    /// What is looked at of a text: of HTML, what would be translated.
    fn sample(text: &str, is_html: bool) -> String {
        if !is_html {
            return text.chars().take(MOST_CHARACTERS).collect();
        }
        let form = Form { html: true, ..Form::default() };
        let plan = Plan::of(text, &form, Rules::of(None), &Reading::by(|_| Vec::new(), usize::MAX));
        let shown: Vec<&str> = plan.segments().iter().map(|segment| segment.text.as_str()).collect();
        shown.join("\n").chars().take(MOST_CHARACTERS).collect()
    }

    fn of_text(detector: &LanguageDetector, known: &[(String, Language)], text: &str) -> Vec<Detected> {
        let values = detector.compute_language_confidence_values(text);
        let value = |language| values.iter().find(|(other, _)| *other == language).map_or(0.0, |(_, value)| *value);
        let mut ranked: Vec<(&String, f64)> = known.iter().map(|(code, language)| (code, value(*language))).collect();
        // Of those that are alike the one that was served first: the detector has no order.
        ranked.sort_by(|a, b| ((b.1 * 1e6).round()).total_cmp(&(a.1 * 1e6).round()));
        let detected = |(code, value): (&String, f64)| Detected {
            // Between 0 and 1.
            confidence: (value * 100.0).round().clamp(0.0, 100.0) as u8,
            language: code.clone(),
        };
        let mut found: Vec<Detected> = ranked.into_iter().map(detected).collect();
        let likely = found.iter().take_while(|one| one.confidence > 0).count();
        found.truncate(likely.max(1));
        found
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn best(served: &[&str], text: &str, is_html: bool) -> Detected {
            let known: Vec<_> =
                served.iter().map(|code| (code.to_string(), of(code).expect("a known language"))).collect();
            let languages: Vec<Language> = known.iter().map(|(_, language)| *language).collect();
            let detector = LanguageDetectorBuilder::from_languages(&languages).build();
            of_text(&detector, &known, &sample(text, is_html)).swap_remove(0)
        }

        #[test]
        fn only_served_languages_are_found_and_nothing_in_what_is_no_language() {
            let served = ["fr", "en", "de", "ru", "zh"];
            for (text, language) in [
                ("Two dogs are playing in the snow.", "en"),
                ("Zwei Hunde spielen im Schnee.", "de"),
                ("Deux chiens jouent dans la neige.", "fr"),
                ("Две собаки играют в снегу.", "ru"),
                ("两只狗在雪地里玩耍。", "zh"),
            ] {
                let found = best(&served, text, false);
                assert!(found.language == language && found.confidence > 50, "{text}: {found:?}");
            }
            for text in ["", " \n\t", "12 + 30 = 42", "🙂", "\u{0}"] {
                assert_eq!(
                    best(&served, text, false),
                    Detected { confidence: 0, language: "fr".to_owned() },
                    "{text:?}"
                );
            }
            // Not served, and so another.
            assert_ne!(best(&["fr", "de"], "Two dogs are playing in the snow.", false).language, "en");
        }

        #[test]
        fn of_html_only_what_is_shown_counts() {
            let html = "<p class='two dogs are playing with the other dogs'>Zwei Hunde.<script>the dogs are in the snow and they play</script>";
            assert_eq!(best(&["en", "de"], html, true).language, "de");
        }

        #[test]
        fn a_long_text_is_told_by_its_beginning() {
            let text = format!("{}{}", "Zwei Hunde spielen im Schnee. ".repeat(40), "The dog. ".repeat(1_000_000));
            let begun = Instant::now();
            assert_eq!(best(&["en", "de"], &text, false).language, "de");
            assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        }

        #[test]
        fn codes_of_iso_639_are_known() {
            assert_eq!(of("de"), Some(Language::German));
            assert_eq!(of("ace"), None);
            assert_eq!(of(""), None);
        }
    }
}
