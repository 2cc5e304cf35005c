//! A text of several lines, taken apart into what is translated and what stays, and put together again.

/// A text: pieces to translate, each with what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// What stands before the first.
    before: String,
    /// What is translated, none of it blank, and what follows it unchanged.
    pieces: Vec<(String, String)>,
}

impl Parts {
    /// Takes a text apart into its lines; blank ones, and all line ends, stay as they are.
    pub fn of_lines(text: &str) -> Self {
        let mut parts = Parts { before: String::new(), pieces: Vec::new() };
        for line in text.split_inclusive('\n') {
            let bare = line.trim_end_matches(['\n', '\r']);
            match bare.trim().is_empty() {
                true => parts.last().push_str(line),
                false => parts.pieces.push((bare.to_owned(), line[bare.len()..].to_owned())),
            }
        }
        parts
    }

    fn last(&mut self) -> &mut String {
        self.pieces.last_mut().map_or(&mut self.before, |(_, behind)| behind)
    }

    /// What is to be translated.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().map(|(source, _)| source.as_str())
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The text with translations in the place of the sources, as many as there are.
    pub fn filled<'a>(&self, translations: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = self.before.clone();
        for ((_, behind), translation) in self.pieces.iter().zip(translations) {
            text.push_str(translation);
            text.push_str(behind);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_translated_and_what_parts_them_stays() {
        let parts = Parts::of_lines("\n \na b\r\n\r\nc\n\nd");
        assert_eq!(parts.sources().collect::<Vec<_>>(), ["a b", "c", "d"]);
        assert_eq!(parts.filled(["1", "2", "3"]), "\n \n1\r\n\r\n2\n\n3");
        assert_eq!(Parts::of_lines("").filled([]), "");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "[ab \\r\\n\u{e9}]{0,40}") {
            let parts = Parts::of_lines(&text);
            let sources: Vec<String> = parts.sources().map(str::to_owned).collect();
            prop_assert_eq!(parts.filled(sources.iter().map(String::as_str)), text);
        }
    }
}
