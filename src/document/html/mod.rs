//! HTML: which text of a document is translated, and how its tags come back into the translation.

mod block;
mod chars;
mod elements;
mod names;
mod place;
mod scan;
mod tree;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::split::{split_with, without_lines};
use super::{Form, Part, PieceKind, Plan, Reading, Rules, Segment, Splitting};
use block::{Block, Region};
pub(super) use chars::encode;
use elements::{Open, end_of};
pub(super) use place::{Aligned, Markup, place};
use place::{Columns, Tags, neighbours};
use scan::{Token, TokenKind, scan};
use tree::{Node, Tag, TagKind};

/// A plan for a document, see [`Plan::html`].
pub(super) fn plan(html: &str, form: &Form, rules: &Rules, reading: &Reading<'_>) -> Plan {
    let plan = Plan { source: html.to_owned(), is_html: form.html, parts: Vec::new(), segments: Vec::new() };
    let (block, open, lifted) = (Block::default(), Open::default(), BTreeMap::new());
    let mut planner = Planner { plan, form, rules, reading, block, at: 0, open, lifted };
    // A byte order mark is no part of the text.
    let mark = html.len() - html.trim_start_matches('\u{feff}').len();
    planner.kept_to(mark.min('\u{feff}'.len_utf8()));
    let tokens = match form.html {
        true => scan(html, planner.at),
        false => vec![Token { range: planner.at..html.len(), kind: TokenKind::Text }],
    };
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = planner.token(&tokens, at, token);
    }
    planner.end_block();
    planner.kept_to(html.len());
    planner.plan
}

struct Planner<'a> {
    plan: Plan,
    form: &'a Form,
    rules: &'a Rules,
    reading: &'a Reading<'a>,
    block: Block,
    /// Bytes of the document that have their part.
    at: usize,
    open: Open,
    /// Where text begins and ends in the document that is protected, and that the model cannot write.
    lifted: BTreeMap<usize, usize>,
}

impl Planner<'_> {
    /// Reads a token; the next one to read.
    fn token(&mut self, tokens: &[Token], at: usize, token: &Token) -> usize {
        let range = token.range.clone();
        match &token.kind {
            TokenKind::Text => {
                // Borrowed from the plan's own copy of the document.
                let text = self.plan.source[range.clone()].to_owned();
                match (self.form.html, self.form.splitting) {
                    (true, _) => self.block.push_text(&text, range.start, self.open.keeps_space()),
                    (false, Splitting::Full) => self.block.push_plain(&text, range.start),
                    (false, _) => self.block.push_plain(&without_lines(&text), range.start),
                }
            }
            TokenKind::Other => self.block.push_tag(TagKind::Point, range),
            TokenKind::Start { name, untranslated } => {
                let is_empty = self.plan.source[range.clone()].ends_with("/>") && (name == "svg" || name == "math");
                let is_void = names::is_void(name) || is_empty;
                let is_ignored = self.form.ignored.iter().any(|ignored| ignored.eq_ignore_ascii_case(name));
                let skipped = !is_void && (*untranslated || is_ignored || names::is_untouched(name));
                let end = if skipped { end_of(tokens, at, name, &self.open) } else { at + 1 };
                let range = range.start..tokens[end - 1].range.end;
                match (names::is_block(name), skipped || is_void) {
                    (true, _) => self.end_block(),
                    (false, true) if name == "wbr" => self.block.push_tag(TagKind::Point, range),
                    (false, true) => self.block.push_content(range),
                    (false, false) => self.block.push_tag(TagKind::Start(name.clone()), range),
                }
                if names::is_block(name) && !skipped && !is_void {
                    self.open.begin(name);
                }
                return end;
            }
            TokenKind::End { name } if names::is_block(name) => {
                self.end_block();
                self.open.end(name);
            }
            TokenKind::End { name } => self.block.push_tag(TagKind::End(name.clone()), range),
        }
        at + 1
    }

    /// Everything before this byte that has no part yet stays as it is.
    fn kept_to(&mut self, end: usize) {
        if end > self.at {
            self.plan.parts.push(Part::Kept(self.at..end));
            self.at = end;
        }
    }

    /// Splits the block that has been read into its segments.
    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        let block = self.protect(block);
        let mut stretches = Vec::new();
        let sentences = split_with(&block.text, self.rules, self.form.splitting)
            .into_iter()
            .filter(|piece| piece.kind == PieceKind::Sentence);
        let mut is_cut = Vec::new();
        for sentence in sentences {
            let (start, length) = (sentence.range.start, sentence.range.len());
            for part in self.reading.parts(&block.text[sentence.range]) {
                is_cut.push(part.len() < length);
                stretches.push(start + part.start..start + part.end);
            }
        }
        if stretches.is_empty() {
            return;
        }
        let text = block.text.clone();
        for region in block.regions(&stretches) {
            let cut = stretches.partition_point(|stretch| stretch.end <= region.text.start);
            let cut = is_cut.get(cut).copied().unwrap_or(false);
            self.region(region, &text, cut);
        }
    }

    /// Takes protected text out that the model cannot write, or that would not stay in one sentence.
    fn protect(&mut self, block: Block) -> Block {
        let is_lifted = |range: &Range<usize>| {
            let text = &block.text[range.clone()];
            let pieces = split_with(text, self.rules, self.form.splitting);
            pieces.iter().filter(|piece| piece.kind != PieceKind::Space).count() > 1 || !(self.reading.spells)(text)
        };
        let stretches: Vec<Range<usize>> =
            self.form.wording.protected(&block.text).into_iter().filter(is_lifted).collect();
        if stretches.is_empty() {
            return block;
        }
        let before: HashSet<Range<usize>> = block.points().collect();
        let block = block.lift(&stretches);
        let lifted = block.points().filter(|point| !before.contains(point));
        self.lifted.extend(lifted.map(|point| (point.start, point.end)));
        block
    }

    fn region(&mut self, region: Region, text: &str, cut: bool) {
        let Region { raw, text: stretch, tags } = region;
        let text = &text[stretch];
        let (raw, tags) = match tree::build(&tags, text) {
            None => (raw, Some(Tags::Row(tags))),
            Some(mut nodes) => {
                let (before, behind) = tree::strip(&mut nodes, text.len(), &raw);
                (
                    before.end..behind.start,
                    Some(Tags::Tree(nodes)).filter(|tags| !matches!(tags, Tags::Tree(nodes) if nodes.is_empty())),
                )
            }
        };
        self.kept_to(raw.start);
        let markup = tags.map(|tags| {
            let columns = columns(self.reading, text, &tags);
            Box::new(Markup { tags, columns, text: text.to_owned() })
        });
        let points = markup.iter().flat_map(|markup| points(&markup.tags));
        let placed = points.flat_map(|raw| self.lifted.range(raw)).map(|(start, end)| &self.plan.source[*start..*end]);
        let placed = placed.map(|text| text.trim().to_owned()).collect();
        self.plan.parts.push(Part::Segment { range: raw.clone(), markup });
        // What is not there as a whole cannot be asked for.
        let mut constraints = self.form.wording.phrases(text);
        let protected: Vec<&str> = self.form.wording.protected(text).into_iter().map(|range| &text[range]).collect();
        constraints.retain(|phrase| !protected.contains(&phrase.as_str()) || (self.reading.spells)(phrase));
        self.plan.segments.push(Segment { text: text.to_owned(), cut, constraints, placed });
        self.at = raw.end;
    }
}

/// Where points stand in the document.
fn points(tags: &Tags) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    match tags {
        Tags::Row(tags) => {
            found.extend(tags.iter().filter(|tag| tag.kind == TagKind::Point).map(|tag| tag.raw.clone()));
        }
        Tags::Tree(nodes) => {
            let mut open: Vec<&Node> = nodes.iter().collect();
            while let Some(node) = open.pop() {
                match node {
                    Node::Point(own) => found.push(own.raw.clone()),
                    Node::Element(element) => open.extend(&element.children),
                }
            }
        }
    }
    found.sort_by_key(|raw| raw.start);
    found
}

/// The columns of the attention to a text that its tags' places need.
fn columns(reading: &Reading<'_>, text: &str, tags: &Tags) -> Columns {
    let mut places = Vec::new();
    let mut point = |at: usize| {
        let (before, behind) = neighbours(text, at);
        places.extend([before.start, before.end, behind.start, behind.end, at]);
    };
    match tags {
        Tags::Row(tags) => tags.iter().for_each(|Tag { at, .. }| point(*at)),
        Tags::Tree(nodes) => {
            let mut open: Vec<&Node> = nodes.iter().collect();
            while let Some(node) = open.pop() {
                match node {
                    Node::Point(own) => point(own.at),
                    Node::Element(element) => {
                        point(element.text.start);
                        point(element.text.end);
                        open.extend(&element.children);
                    }
                }
            }
        }
    }
    places.sort_unstable();
    places.dedup();
    let all = (reading.encode)(text);
    let blank = (reading.encode)("");
    let common = |ids: &[u32]| ids.iter().zip(&all).take_while(|(a, b)| a == b).count();
    let before = common(&blank);
    let end = all.len().saturating_sub(blank.len().saturating_sub(before)).max(before);
    // The tokens of a beginning are those that the whole begins with, as far as a word is not divided.
    let column = |at: usize| match at {
        0 => before,
        at if at == text.len() => end,
        at => common(&(reading.encode)(&text[..at])).clamp(before, end),
    };
    Columns { text: before..end, at: places.into_iter().map(|at| (at, column(at))).collect() }
}

#[cfg(test)]
mod tests;
