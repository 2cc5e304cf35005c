//! Text without fields under `--contrastive source`: each line is read beside the next one that is not blank, the last beside the first.

use std::collections::VecDeque;

use crate::Result;
use crate::cli::input::{Line, Lines};

/// Lines with the text that each is contrasted with.
pub(super) struct Paired {
    lines: Lines,
    /// Read, and not handed out: a line that is not blank, until the next one of its kind has come, and what stands between.
    waiting: VecDeque<Line>,
    /// The first line that is not blank, and its number.
    first: Option<(u64, String)>,
    ended: bool,
}

impl Paired {
    pub(super) fn new(lines: Lines) -> Self {
        Paired { lines, waiting: VecDeque::new(), first: None, ended: false }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        loop {
            match self.waiting.front() {
                None if self.ended => return Ok(None),
                Some(line) if text(line).is_none() => return Ok(self.waiting.pop_front()),
                Some(_) => {
                    let other = self.partner();
                    if other.is_some() || self.ended {
                        return Ok(self.waiting.pop_front().map(|line| beside(line, other)));
                    }
                }
                None => {}
            }
            match self.lines.next()? {
                None => self.ended = true,
                // JSON lines bring what they are contrasted with.
                Some(line) if !self.lines.are_plain() => return Ok(Some(line)),
                Some(line) => {
                    if self.first.is_none() {
                        self.first = text(&line).map(|text| (line.number, text.to_string()));
                    }
                    self.waiting.push_back(line);
                }
            }
        }
    }

    /// What the first waiting line is read beside, if that is known; a line that stands alone has nothing.
    fn partner(&self) -> Option<String> {
        let next = self.waiting.iter().skip(1).find_map(text).map(str::to_string);
        let front = self.waiting.front().map(|line| line.number);
        let wrapped = || self.first.as_ref().filter(|(number, _)| self.ended && Some(*number) != front);
        next.or_else(|| wrapped().map(|(_, text)| text.clone()))
    }
}

/// The line's sentence, unless it is blank or cannot be read.
fn text(line: &Line) -> Option<&str> {
    line.content.as_ref().ok().map(|item| item.sentence.source.as_str()).filter(|text| !text.trim().is_empty())
}

/// The line with its other source, unless it has brought one.
fn beside(mut line: Line, other: Option<String>) -> Line {
    if let Ok(item) = &mut line.content {
        item.sentence.contrast_source = item.sentence.contrast_source.take().or(other);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::input::{Form, Plain};

    fn pairs(text: &str) -> Vec<(u64, Option<String>)> {
        let mut lines = Paired::new(Lines::from_bytes(text.as_bytes().to_vec(), Form::Text));
        let all = std::iter::from_fn(|| lines.next().expect("memory does not fail"));
        all.map(|line| (line.number, line.content.expect("text").sentence.contrast_source)).collect()
    }

    #[test]
    fn a_line_is_read_beside_the_next_one_that_is_not_blank() {
        let other = |text: &str| Some(text.to_string());
        assert_eq!(pairs("a\nb\nc\n"), [(1, other("b")), (2, other("c")), (3, other("a"))]);
        assert_eq!(
            pairs("\na\n \n\nb\n\n"),
            [(1, None), (2, other("b")), (3, None), (4, None), (5, other("a")), (6, None)]
        );
    }

    #[test]
    fn json_lines_are_left_as_they_are() {
        let json = "{\"source\": \"a\"}\n{\"source\": \"b\", \"contrast_source\": \"c\"}\n".as_bytes().to_vec();
        let mut lines = Paired::new(Lines::from_bytes(json, Form::Detect(Plain::Text)));
        let all = std::iter::from_fn(|| lines.next().expect("memory does not fail"));
        let others: Vec<Option<String>> =
            all.map(|line| line.content.expect("JSON").sentence.contrast_source).collect();
        assert_eq!(others, [None, Some("c".to_string())]);
    }

    #[test]
    fn a_line_alone_is_read_beside_nothing() {
        assert_eq!(pairs("a\n\n"), [(1, None), (2, None)]);
        assert_eq!(pairs("a\na\n").len(), 2);
        assert_eq!(pairs("a\na\n")[1].1.as_deref(), Some("a"));
        assert_eq!(pairs(""), []);
    }
}
