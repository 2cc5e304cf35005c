//! Splitting: what ends a sentence, and what does not.

use proptest::prelude::*;

use super::*;

/// The sentences and what is kept, the latter in braces; held to lie one behind another.
fn pieces(text: &str, language: &str) -> Vec<String> {
    let mut at = 0;
    let mut shown = Vec::new();
    for Piece { range, kind } in split(text, Rules::of(Some(language).filter(|code| !code.is_empty()))) {
        assert_eq!((range.start, range.is_empty()), (at, false));
        at = range.end;
        let piece = &text[range];
        assert!(piece.trim().is_empty() == (kind == PieceKind::Space), "{piece:?}");
        match kind {
            PieceKind::Space => {}
            PieceKind::Kept => shown.push(format!("{{{piece}}}")),
            PieceKind::Sentence => shown.push(piece.to_owned()),
        }
    }
    assert_eq!(at, text.len());
    shown
}

/// Holds a text, written with `|` between its sentences and kept pieces, to be split so.
#[track_caller]
fn holds(language: &str, marked: &str) {
    let expected: Vec<String> = marked.split('|').map(|piece| piece.trim().to_owned()).collect();
    let text = marked.replace(['|', '{', '}'], "");
    assert_eq!(pieces(&text, language), expected);
}

#[test]
fn sentences_end_at_their_marks() {
    holds("en", "A dog runs.| Two cats sleep!| Do birds sing?| Yes");
    holds("en", "A dog runs.  |\tIt is fast.");
    holds("en", "Wait... what is that?| Wait...| The dog is here.| Well… yes.| Well…| The end.");
    holds("en", "“Stop!” he said.| She said: “Go away.”| He went.");
    holds("en", "\"Is it true?\" asked the man.| (He left.)| It rained.");
    holds("en", "What?! |No!!!| Really?!");
    holds("en", "What is this?|Nothing.");
    holds("ja", "犬が走る。|猫が寝る！|鳥は？");
    holds("zh", "他说：“好。”|她走了。");
    holds("es", "¿Qué es esto?| ¡Un perro!");
    holds("hi", "कुत्ता दौड़ता है।| बिल्ली सोती है।");
    assert_eq!(pieces("", "en"), [""; 0]);
    assert_eq!(pieces(" \n\t\u{a0}", "en"), [""; 0]);
}

#[test]
fn line_breaks_end_sentences() {
    holds("en", "A dog\n| runs\r\n| in the\u{2028}| snow\n\n\n|.. and sleeps\u{85}");
}

#[test]
fn abbreviations_end_none() {
    holds("en", "Mr. Smith met Dr. Jones and Mrs. Brown at St. Mary's.| They left.");
    holds("en", "See Fig. 3 and No. 5 on p. 12.| The end.");
    holds("en", "The answer is no.| The dog left.");
    holds("en", "Tools, e.g. Hammers, vs. Nails.| (Cf. Smith.)| Done.");
    holds("en", "We sell pens, ink, etc.| The shop is open.| At 5 p.m. the dog ran.");
    holds("en", "Acme Inc. was founded.| I like Acme Inc.| The dog does not.");
    holds("de", "Das kostet ca. 50 Euro, d. h. Viel, z. B. Hunde bzw. Katzen usw.| Der Hund läuft.");
    holds("de", "Dr. Müller wohnt in der Nr. 5.| Er hat u. a. Hunde.");
    holds("fr", "M. Dupont et Mme. Durand sont là.| Ils dorment.");
    holds("es", "El Sr. Pérez vive en la Av. Libertad.| Duerme.");
    holds("ru", "Г-н А. С. Пушкин жил на ул. Мойка.| Он писал.");
    holds("pl", "Prof. Nowak, tj. Jan, mieszka na ul. Długiej.| On śpi.");
    // Of a language that is not known.
    holds("", "Mr. Smith ran.| Hr. Müller, z.B. Hans.| Never mind.| The dog left.");
}

#[test]
fn initials_and_acronyms_end_none() {
    holds("en", "J. R. R. Tolkien and George W. Bush met J.-P. Sartre.| He left.");
    holds("en", "The U.S. Army and the U.K. Navy.| He lives in the U.S.| The dog does, too.");
    holds("en", "It was Henry I.| She left.| It takes vitamin C.| The dog knows.");
    holds("en", "It is I.| Dogs run.");
}

#[test]
fn numbers_end_none() {
    holds("en", "It costs 3.50 or 1,000.25, version 1.2.3.| The dog paid.");
    holds("en", "In 1999.| The dog came 2.| The cat came 3.");
    holds("de", "Am 3. Oktober und im 19. Jahrhundert.| Der 2. Weltkrieg.| Er wurde 3.| Die Katze wurde 4.");
    holds("de", "1. Mai ist ein Feiertag.| Es war 1999.| Hunde bellten.");
    holds("en", "Dogs ran on 3.| May I go?");
}

#[test]
fn addresses_stay_whole() {
    holds("en", "See https://example.com/a.b/?q=a!b&c=d. |Then write to a.b@example.com.| Done.");
    holds("en", "Go to www.example.com/?What=Now!Go for more.| See Node.js.");
    holds("en", "{https://example.com/?q=A}|\n{me@example.com}|\nvisit https://example.com");
}

#[test]
fn list_markers_are_kept() {
    holds("en", "{1.}| Buy milk.| Feed the dog.\n|{2.}| Sleep\n|{-}| Run\n|{a)}| Walk\n\t|{•} |Jump");
    holds("en", "{>}| He said hello.\n|{##}| A title\n|{- [ ]}| A task");
    holds("de", "{1.}| Milch kaufen.");
    holds("en", "{—}| Hello.\n|{---}\n|{* * *}\n|{12.5}\n|{2024-01-01}");
}

#[test]
fn pictographs_are_kept_beside_sentences() {
    holds("en", "A dog! |{😀}| It runs 🐕 fast. |{🎉🎉}\n|{👍🏽}| Good.|{🇩🇪}\n|{❤️}");
}

#[test]
fn long_runs_keep_their_places() {
    let spaces = " ".repeat(1000);
    let text = format!("A dog.{spaces}The cat.{}{spaces}(A bird.{spaces}", ")".repeat(1000));
    assert_eq!(
        pieces(&text, "en"),
        ["A dog.".to_owned(), format!("The cat.{}", ")".repeat(1000)), "(A bird.".to_owned()]
    );
    // It would take hours if each character looked at all that follow.
    for hard in [" ", ")", "\u{301}", "😀", "1", ". ", "a. ", "A. ", "a.) ", "? ", "!", "… ", "- ", "…A", ">", "(1) "]
    {
        let text = format!("a.{}", hard.repeat((1 << 20) / hard.len()));
        pieces(&text, "de");
    }
}

/// What texts are made of, and what is hard about them.
fn text() -> impl Strategy<Value = String> {
    let words: Vec<&'static str> = vec![
        "dog",
        "The",
        "Mr.",
        "z.",
        "B.",
        "A.",
        "3.",
        "1.5",
        "…",
        "...",
        "?",
        "!",
        ".",
        "\"",
        "”",
        "(",
        ")",
        "-",
        "1.",
        "a)",
        "😀",
        "\u{200d}",
        "\u{fe0f}",
        "https://a.b/?c=d",
        "me@a.b",
        "。",
        "「",
        "犬",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{2028}",
        "\u{301}",
        "ä",
        "",
        "Mai",
        "I.",
        "\u{0}",
        "I",
        "U.S.",
    ];
    let fragment = prop_oneof![4 => proptest::sample::select(words).prop_map(str::to_owned), 1 => ".{0,8}"];
    proptest::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn pieces_are_the_text(text in text(), language in proptest::sample::select(vec!["", "en", "de", "ja", "ru"])) {
        let pieces = split(&text, Rules::of(Some(language)));
        let mut at = 0;
        for Piece { range, kind } in pieces {
            prop_assert!(range.start == at && range.end > at, "{range:?} behind {at}");
            at = range.end;
            let is_space = text[range].chars().all(char::is_whitespace);
            prop_assert_eq!(is_space, kind == PieceKind::Space);
        }
        prop_assert_eq!(at, text.len());
    }
}
