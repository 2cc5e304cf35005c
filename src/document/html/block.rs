//! A stretch of text with inline tags, such as a paragraph: its text for the splitter, and the way back to the document's bytes.

use std::ops::Range;

use super::super::is_letter;
use super::chars;
use super::tree::{Tag, TagKind};

/// What a block consists of; the atoms follow one another without a gap.
#[derive(Clone, Debug)]
struct Atom {
    /// Bytes of the document.
    raw: Range<usize>,
    kind: AtomKind,
}

#[derive(Clone, Debug)]
enum AtomKind {
    /// Bytes of the block's text: the same as in the document if `verbatim`, else what a character reference or white space stands for.
    Text { text: Range<usize>, verbatim: bool },
    /// A tag in front of this byte of the block's text, and white space behind it that is not shown.
    Tag(TagKind, usize),
}

/// A block as it is read.
#[derive(Debug, Default)]
pub(super) struct Block {
    atoms: Vec<Atom>,
    /// The text with character references decoded and, outside `pre`, white space collapsed.
    pub text: String,
    /// Whether something that is seen, such as an image, stands behind the text.
    is_parted: bool,
}

/// A stretch of a block that is to be translated.
#[derive(Debug)]
pub(super) struct Region {
    /// Bytes of the document.
    pub raw: Range<usize>,
    /// Bytes of the block's text.
    pub text: Range<usize>,
    /// The tags within; their places count from the beginning of `text`.
    pub tags: Vec<Tag>,
}

impl Block {
    /// Adds text of the document that begins at byte `start`.
    pub fn push_text(&mut self, html: &str, start: usize, keeps_space: bool) {
        let mut raw = start;
        chars::decode(html, |decoded, bytes| {
            let range = raw..raw + bytes;
            raw = range.end;
            let is_space = !keeps_space && matches!(decoded, " " | "\t" | "\n" | "\r" | "\u{c}");
            if is_space && (self.text.is_empty() || self.text.ends_with(' ')) {
                return self.push_dropped(range);
            }
            let decoded = if is_space { " " } else { decoded };
            self.part(decoded, range.start);
            let verbatim = html[range.start - start..range.end - start] == *decoded;
            let text = self.text.len()..self.text.len() + decoded.len();
            self.text.push_str(decoded);
            match self.atoms.last_mut() {
                Some(Atom { raw, kind: AtomKind::Text { text: before, verbatim: true } }) if verbatim => {
                    (raw.end, before.end) = (range.end, text.end);
                }
                _ => self.atoms.push(Atom { raw: range, kind: AtomKind::Text { text, verbatim } }),
            }
        });
    }

    /// Adds white space that is not shown: it stays with the space, or the tag, before it.
    fn push_dropped(&mut self, range: Range<usize>) {
        match self.atoms.last_mut() {
            // The space alone is no longer what stands in the document.
            Some(Atom { raw, kind: AtomKind::Text { text, verbatim: true } }) if text.len() > 1 => {
                (raw.end, text.end) = (raw.end - 1, text.end - 1);
                let kind = AtomKind::Text { text: text.end..text.end + 1, verbatim: false };
                let raw = raw.end..range.end;
                self.atoms.push(Atom { raw, kind });
            }
            Some(Atom { raw, kind }) => {
                raw.end = range.end;
                if let AtomKind::Text { verbatim, .. } = kind {
                    *verbatim = false;
                }
            }
            None => {
                let kind = AtomKind::Text { text: 0..0, verbatim: false };
                self.atoms.push(Atom { raw: range, kind });
            }
        }
    }

    /// Adds plain text.
    pub fn push_plain(&mut self, text: &str, start: usize) {
        let at = self.text.len();
        self.text.push_str(text);
        let kind = AtomKind::Text { text: at..self.text.len(), verbatim: true };
        self.atoms.push(Atom { raw: start..start + text.len(), kind });
    }

    /// The block with these stretches of its text, which lie one behind another, made something that is seen, and is no text: one for
    /// each, or several if tags divide it. A space behind it goes with it if one stands before it.
    pub fn lift(mut self, stretches: &[Range<usize>]) -> Self {
        let parts = |range: &Range<usize>| {
            let (before, behind) = (&self.text[..range.start], &self.text[range.end..]);
            let is_spaced = (before.is_empty() || before.ends_with(' ')) && behind.starts_with(' ');
            range.start..range.end + usize::from(is_spaced)
        };
        let stretches: Vec<Range<usize>> = stretches.iter().map(parts).collect();
        self.split_atoms(&stretches);
        let mut lifted = Block::default();
        let mut open = None;
        for Atom { raw, kind } in self.atoms {
            match kind {
                AtomKind::Tag(kind, _) => {
                    lifted.push_tag(kind, raw);
                    open = None;
                }
                AtomKind::Text { text, verbatim } => {
                    let within = stretches.partition_point(|stretch| stretch.end < text.end);
                    let is_within = stretches.get(within).is_some_and(|stretch| stretch.start <= text.start);
                    match lifted.atoms.last_mut() {
                        Some(point) if is_within && open == Some(within) => point.raw.end = raw.end,
                        _ if is_within && !text.is_empty() => {
                            lifted.push_content(raw);
                            open = Some(within);
                        }
                        _ => {
                            lifted.push_read(&self.text[text], raw, verbatim);
                            open = None;
                        }
                    }
                }
            }
        }
        lifted
    }

    /// Adds text that has been read before.
    fn push_read(&mut self, text: &str, raw: Range<usize>, verbatim: bool) {
        self.part(text, raw.start);
        let at = self.text.len();
        self.text.push_str(text);
        self.atoms.push(Atom { raw, kind: AtomKind::Text { text: at..self.text.len(), verbatim } });
    }

    /// Adds a space before text that would be read as one word with what stands before something that is seen.
    fn part(&mut self, text: &str, raw: usize) {
        if std::mem::take(&mut self.is_parted) && self.text.ends_with(is_letter) && text.starts_with(is_letter) {
            let at = self.text.len();
            self.text.push(' ');
            let kind = AtomKind::Text { text: at..at + 1, verbatim: false };
            self.atoms.push(Atom { raw: raw..raw, kind });
        }
    }

    /// Adds something that is seen, and is no text.
    pub fn push_content(&mut self, raw: Range<usize>) {
        self.is_parted = true;
        self.push_tag(TagKind::Point, raw);
    }

    /// Where what is no text, and begins and ends no element, begins in the document.
    pub fn points(&self) -> impl Iterator<Item = Range<usize>> {
        let is_point = |atom: &&Atom| matches!(atom.kind, AtomKind::Tag(TagKind::Point, _));
        self.atoms.iter().filter(is_point).map(|atom| atom.raw.clone())
    }

    pub fn push_tag(&mut self, kind: TagKind, raw: Range<usize>) {
        self.atoms.push(Atom { raw, kind: AtomKind::Tag(kind, self.text.len()) });
    }

    /// The regions of stretches of the text, which are not empty, in their order. Tags right before and behind a stretch belong to it as
    /// far as its elements begin and end there.
    pub fn regions(mut self, stretches: &[Range<usize>]) -> Vec<Region> {
        for stretch in stretches {
            debug_assert!(!stretch.is_empty());
        }
        self.split_atoms(stretches);
        let mut regions: Vec<Region> = Vec::with_capacity(stretches.len());
        // The first atom that no region has.
        let mut free = 0;
        let mut at = 0;
        for (i, stretch) in stretches.iter().enumerate() {
            while at < self.atoms.len() && !self.reaches_behind(at, stretch.start) {
                at += 1;
            }
            let first = at;
            while at < self.atoms.len() && self.begins_before(at, stretch.end) {
                at += 1;
            }
            // Tags behind the last letter are looked at below.
            let mut last = at;
            while last > first && matches!(self.atoms[last - 1].kind, AtomKind::Tag(..)) {
                last -= 1;
            }
            if first == last {
                continue;
            }
            let next = stretches.get(i + 1).map_or(self.text.len() + 1, |next| next.start);
            let (begin, end) = (self.leading(free, first), self.trailing(last, next));
            let text = self.text_start(first)..self.text_end(last - 1);
            let tags = self.atoms[begin..end].iter().filter_map(|atom| match &atom.kind {
                AtomKind::Tag(kind, at) => {
                    let at = (*at).clamp(text.start, text.end) - text.start;
                    Some(Tag { kind: kind.clone(), raw: atom.raw.clone(), at })
                }
                AtomKind::Text { .. } => None,
            });
            let tags = tags.collect();
            regions.push(Region { raw: self.atoms[begin].raw.start..self.atoms[end - 1].raw.end, text, tags });
            (free, at) = (end, end.max(last));
        }
        regions
    }

    /// Splits verbatim text where stretches begin and end.
    fn split_atoms(&mut self, stretches: &[Range<usize>]) {
        let mut ends = stretches.iter().flat_map(|stretch| [stretch.start, stretch.end]).peekable();
        let mut split = Vec::with_capacity(self.atoms.len() + 2 * stretches.len());
        for atom in self.atoms.drain(..) {
            let AtomKind::Text { text, verbatim } = atom.kind else {
                split.push(atom);
                continue;
            };
            let (mut raw, mut text) = (atom.raw, text);
            while let Some(end) = ends.next_if(|end| *end < text.end) {
                if end > text.start && verbatim {
                    let length = end - text.start;
                    let kind = AtomKind::Text { text: text.start..end, verbatim };
                    split.push(Atom { raw: raw.start..raw.start + length, kind });
                    (raw.start, text.start) = (raw.start + length, end);
                }
            }
            split.push(Atom { raw, kind: AtomKind::Text { text, verbatim } });
        }
        self.atoms = split;
    }

    fn text_start(&self, atom: usize) -> usize {
        match &self.atoms[atom].kind {
            AtomKind::Text { text, .. } => text.start,
            AtomKind::Tag(_, at) => *at,
        }
    }

    fn text_end(&self, atom: usize) -> usize {
        match &self.atoms[atom].kind {
            AtomKind::Text { text, .. } => text.end,
            AtomKind::Tag(_, at) => *at,
        }
    }

    /// Whether an atom is text that goes on behind this byte.
    fn reaches_behind(&self, atom: usize, at: usize) -> bool {
        matches!(&self.atoms[atom].kind, AtomKind::Text { text, .. } if text.end > at)
    }

    /// Whether an atom may belong to a stretch that ends with this byte.
    fn begins_before(&self, atom: usize, end: usize) -> bool {
        match &self.atoms[atom].kind {
            AtomKind::Text { text, .. } => text.start < end,
            AtomKind::Tag(_, at) => *at < end,
        }
    }

    /// The first atom of a region whose text begins with `first`: a start tag that only others stand behind, if there is one.
    fn leading(&self, free: usize, first: usize) -> usize {
        let mut begin = first;
        while begin > free && matches!(self.atoms[begin - 1].kind, AtomKind::Tag(TagKind::Start(_) | TagKind::Point, _))
        {
            begin -= 1;
        }
        while begin < first && !matches!(self.atoms[begin].kind, AtomKind::Tag(TagKind::Start(_), _)) {
            begin += 1;
        }
        begin
    }

    /// The end of a region whose text ends before `last`; the next one begins at byte `next` of the text.
    fn trailing(&self, last: usize, next: usize) -> usize {
        let mut end = last;
        let goes_on =
            |atom: &Atom| matches!(&atom.kind, AtomKind::Tag(TagKind::End(_) | TagKind::Point, at) if *at <= next);
        while self.atoms.get(end).is_some_and(goes_on) {
            end += 1;
        }
        while end > last && !matches!(self.atoms[end - 1].kind, AtomKind::Tag(TagKind::End(_), _)) {
            end -= 1;
        }
        end
    }
}
