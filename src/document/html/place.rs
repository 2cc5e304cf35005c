//! Tags back into a translation: by the attention that its tokens paid to the source's.

use std::ops::Range;

use super::super::{Plan, is_letter};
use super::tree::{Element, Node, Point, Tag, TagKind};

/// Which columns of the attention belong to which bytes of a segment's text.
#[derive(Debug)]
pub(super) struct Columns {
    /// Those of the text, without what stands around a sentence.
    pub text: Range<usize>,
    /// Bytes, ascending, and the columns that begin there.
    pub at: Vec<(usize, usize)>,
}

impl Columns {
    fn of(&self, text: &Range<usize>) -> Range<usize> {
        let column = |byte: usize| {
            let at = self.at.partition_point(|(here, _)| *here < byte);
            self.at.get(at).map_or(self.text.end, |(_, column)| *column)
        };
        column(text.start)..column(text.end)
    }
}

/// Where the tags of a segment stand.
#[derive(Debug)]
pub(super) enum Tags {
    Tree(Vec<Node>),
    /// They are not nested: they keep their order.
    Row(Vec<Tag>),
}

/// A segment's tags, and what is needed to find their places in a translation.
#[derive(Debug)]
pub(in crate::document) struct Markup {
    pub(super) tags: Tags,
    pub(super) columns: Columns,
    /// The segment's text.
    pub(super) text: String,
}

/// A translation with the attention of its tokens.
#[derive(Debug)]
pub(in crate::document) struct Aligned<'a> {
    /// The byte of the translation that each token ends before.
    pub ends: Vec<usize>,
    /// For each token its attention to each source token.
    pub rows: &'a [Vec<f32>],
}

/// A stretch of a translation that no tag may divide, without white space around it.
struct Unit {
    range: Range<usize>,
    /// Its share of attention to each of the source's columns.
    weights: Vec<f32>,
    is_word: bool,
}

/// The word, or part of one, right before and right behind a byte of a text.
pub(super) fn neighbours(text: &str, at: usize) -> (Range<usize>, Range<usize>) {
    let before = text[..at].trim_end();
    let start = before
        .rfind(char::is_whitespace)
        .map_or(0, |space| space + before[space..].chars().next().map_or(1, char::len_utf8));
    let behind = text[at..].trim_start();
    let from = text.len() - behind.len();
    let end = behind.find(char::is_whitespace).map_or(text.len(), |space| from + space);
    (start..before.len(), from..end)
}

/// Writes a translation with the segment's tags, taken from the document, in it. Without attention the words of the translation
/// are taken to stand in the source's order.
pub(in crate::document) fn place(plan: &Plan, markup: &Markup, text: &str, aligned: Option<&Aligned<'_>>) -> String {
    let units = units(text, aligned, &markup.columns);
    let mut placer = Placer { plan, markup, text, units, written: String::new(), at: 0 };
    let all = 0..placer.units.len();
    match &markup.tags {
        Tags::Tree(nodes) => placer.nodes(nodes, all, &(0..markup.text.len())),
        Tags::Row(tags) => placer.row(tags),
    }
    placer.text_to(text.len());
    placer.written
}

fn units(text: &str, aligned: Option<&Aligned<'_>>, columns: &Columns) -> Vec<Unit> {
    let length = columns.text.len().max(1);
    let is_joined =
        |at: usize| text[..at].ends_with(is_letter) && text[at..].starts_with(|c: char| is_letter(c) || is_mark(c));
    let ends: Vec<usize> = match aligned {
        Some(aligned) => aligned.ends.clone(),
        None => text.char_indices().map(|(at, c)| at + c.len_utf8()).collect(),
    };
    let mut units: Vec<Unit> = Vec::new();
    let mut start = 0;
    let mut weights = vec![0.0; length];
    for (token, end) in ends.iter().copied().enumerate() {
        if let Some(row) = aligned.and_then(|aligned| aligned.rows.get(token)) {
            let row = row.get(columns.text.clone()).unwrap_or_default();
            weights.iter_mut().zip(row).for_each(|(sum, weight)| *sum += weight);
        }
        let is_last = token + 1 == ends.len();
        let end = if is_last { text.len() } else { end };
        if end < start || !text.is_char_boundary(end) || (!is_last && is_joined(end)) {
            continue;
        }
        let unit = super::super::split::trim(text, start..end);
        // White space alone belongs to nothing.
        if !unit.is_empty() {
            let is_word = text[unit.clone()].contains(char::is_alphanumeric);
            units.push(Unit { range: unit, weights: std::mem::replace(&mut weights, vec![0.0; length]), is_word });
        }
        start = end;
    }
    if aligned.is_none() {
        let total = text.len().max(1);
        for unit in &mut units {
            let middle = unit.range.start.midpoint(unit.range.end);
            unit.weights[(middle * length / total).min(length - 1)] = 1.0;
        }
    }
    agree(&mut units, length);
    units
}

/// Makes of each unit's attention a share of each source token, which counts for more the more of all attention to that token is this
/// unit's: an article that looks ahead to its noun's adjective is not its translation. This is the product of the probabilities of both
/// directions of an alignment (Liang, Taskar and Klein 2006, "Alignment by Agreement").
fn agree(units: &mut [Unit], length: usize) {
    normalize(units);
    let mut columns = vec![0.0; length];
    for unit in units.iter() {
        columns.iter_mut().zip(&unit.weights).for_each(|(sum, weight)| *sum += weight);
    }
    for unit in units.iter_mut() {
        for (weight, column) in unit.weights.iter_mut().zip(&columns) {
            *weight *= if *column > 0.0 { *weight / column } else { 0.0 };
        }
    }
    normalize(units);
}

fn normalize(units: &mut [Unit]) {
    for unit in units {
        let sum: f32 = unit.weights.iter().sum();
        if sum > 0.0 {
            unit.weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
}

/// Whether a character belongs to the one before it.
fn is_mark(c: char) -> bool {
    use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
    c.general_category_group() == GeneralCategoryGroup::Mark
}

struct Placer<'a> {
    plan: &'a Plan,
    markup: &'a Markup,
    text: &'a str,
    units: Vec<Unit>,
    written: String,
    /// Bytes of the text that are written.
    at: usize,
}

/// A node and its place: for an element its units; a point stands before the first, or, if attached, right behind the unit before.
struct Placed<'a> {
    node: &'a Node,
    units: Range<usize>,
    attached: bool,
}

impl Placer<'_> {
    fn text_to(&mut self, end: usize) {
        if end > self.at {
            self.written.push_str(&self.plan.written(&self.text[self.at..end]));
            self.at = end;
        }
    }

    fn tag(&mut self, raw: &Range<usize>) {
        self.written.push_str(&self.plan.source[raw.clone()]);
    }

    /// Writes the nodes within these bytes of the segment's text, among these units.
    fn nodes(&mut self, nodes: &[Node], all: Range<usize>, within: &Range<usize>) {
        let mut taken = vec![false; all.len()];
        let mut placed = Vec::with_capacity(nodes.len());
        // What goes on from an earlier segment, or into a later one, has one end at the edge: it comes first.
        let is_bound = |node: &&Node| matches!(node, Node::Element(e) if e.open.is_none() || e.close.is_none());
        let (bound, free): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(is_bound);
        for node in bound.into_iter().chain(free) {
            if let Node::Element(element) = node {
                let units = self.span(element, &all, &taken);
                taken[units.start - all.start..units.end - all.start].fill(true);
                placed.push(Placed { node, units, attached: false });
            }
        }
        for node in nodes {
            if let Node::Point(point) = node {
                let (at, attached) = self.point(point.at, &all, within);
                placed.push(Placed { node, units: at..at, attached });
            }
        }
        // At one place what stood first in the source.
        let source = |node: &Node| match node {
            Node::Element(element) => (element.text.start, 1),
            Node::Point(point) => (point.at, 0),
        };
        let edge = |placed: &Placed<'_>| match placed.node {
            Node::Element(Element { open: None, .. }) => 0,
            Node::Element(Element { close: None, .. }) => 2,
            _ => 1,
        };
        placed.sort_by_key(|p| (edge(p), 2 * p.units.start + usize::from(!p.attached), source(p.node)));
        for Placed { node, units, attached } in placed {
            match node {
                Node::Element(element) => self.element(element, units, all.end),
                Node::Point(point) => self.write_point(point, units.start, attached),
            }
        }
    }

    fn element(&mut self, element: &Element, units: Range<usize>, end: usize) {
        if let Some(open) = &element.open {
            // One that ends in a later segment begins behind all others here.
            let from = if units.is_empty() && units.start < end {
                self.unit_end(units.start)
            } else {
                self.unit_start(units.start)
            };
            self.text_to(from);
            self.tag(open);
        }
        self.nodes(&element.children, units.clone(), &element.text);
        if let Some(close) = &element.close {
            self.text_to(if units.is_empty() { self.at } else { self.unit_end(units.end) });
            self.tag(close);
        }
    }

    /// Writes something without text. A space parts it from what stands beside it if one did in the source, and if it is seen and a
    /// word is beside it that was none in the source.
    fn write_point(&mut self, point: &Point, unit: usize, attached: bool) {
        self.text_to(if attached { self.unit_end(unit) } else { self.unit_start(unit) });
        let (before, behind) = self.markup.text.split_at(point.at);
        let raw = &self.plan.source[point.raw.clone()];
        let is_seen = !raw.starts_with("<!") && !raw.starts_with("<?") && !raw.starts_with("<wbr");
        let (written, rest) = self.text.split_at(self.at);
        let is_new_word = is_seen && written.ends_with(is_letter) && !before.ends_with(is_letter);
        if (before.ends_with(char::is_whitespace) || is_new_word) && written.ends_with(|c: char| !c.is_whitespace()) {
            self.written.push(' ');
        }
        self.tag(&point.raw);
        let is_new_word = is_seen && rest.starts_with(is_letter) && !behind.starts_with(is_letter);
        if is_new_word && !raw.ends_with(|c: char| c.is_ascii_whitespace()) {
            self.written.push(' ');
        }
    }

    /// Writes tags in their order, each at its place or behind the tag before.
    fn row(&mut self, tags: &[Tag]) {
        let all = 0..self.units.len();
        for Tag { kind, raw, at } in tags {
            let (before, behind) = neighbours(&self.markup.text, *at);
            match kind {
                TagKind::Start(_) => {
                    let unit = self.aligned(&behind, &all).unwrap_or(all.end);
                    self.text_to(self.unit_start(unit));
                    self.tag(raw);
                }
                TagKind::End(_) => {
                    let unit = self.aligned_last(&before, &all).map_or(0, |unit| unit + 1);
                    self.text_to(self.unit_end(unit));
                    self.tag(raw);
                }
                TagKind::Point => {
                    let (unit, attached) = self.point(*at, &all, &(0..self.markup.text.len()));
                    self.write_point(&Point { raw: raw.clone(), at: *at }, unit, attached);
                }
            }
        }
    }

    /// Where the text of a unit begins, or the text ends.
    fn unit_start(&self, unit: usize) -> usize {
        self.units.get(unit).map_or(self.text.len(), |unit| unit.range.start)
    }

    /// Where the text of the unit before this one ends, or the text begins.
    fn unit_end(&self, unit: usize) -> usize {
        unit.checked_sub(1).and_then(|before| self.units.get(before)).map_or(0, |unit| unit.range.end)
    }

    /// The place of something without text: with the word that it touches, else before the word behind it, of those within the
    /// element that it is in.
    fn point(&self, at: usize, all: &Range<usize>, within: &Range<usize>) -> (usize, bool) {
        let (before, behind) = neighbours(&self.markup.text, at);
        let before = before.start.max(within.start).min(before.end)..before.end;
        let behind = behind.start..behind.end.min(within.end).max(behind.start);
        let attached = !before.is_empty() && before.end == at;
        match attached {
            true => (self.aligned_last(&before, all).map_or(all.start, |unit| unit + 1), true),
            false => (self.aligned(&behind, all).unwrap_or(all.end), false),
        }
    }

    /// How much of its attention a unit pays to these bytes of the source, 0..=1.
    fn share(&self, unit: usize, columns: &Range<usize>) -> f32 {
        let first = self.markup.columns.text.start;
        let columns = columns.start.saturating_sub(first)..columns.end.saturating_sub(first);
        self.units[unit].weights.get(columns).unwrap_or_default().iter().sum()
    }

    /// The unit among these that pays most attention to these bytes of the source, the first of several.
    fn aligned(&self, source: &Range<usize>, all: &Range<usize>) -> Option<usize> {
        let shares = self.shares(source, all);
        shares.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(unit, _)| unit)
    }

    /// The same, the last of several.
    fn aligned_last(&self, source: &Range<usize>, all: &Range<usize>) -> Option<usize> {
        let shares = self.shares(source, all);
        shares.reduce(|best, other| if other.1 >= best.1 { other } else { best }).map(|(unit, _)| unit)
    }

    fn shares(&self, source: &Range<usize>, all: &Range<usize>) -> impl Iterator<Item = (usize, f32)> {
        let columns = self.markup.columns.of(source);
        let units = if source.is_empty() { 0..0 } else { all.clone() };
        units.map(move |unit| (unit, self.share(unit, &columns)))
    }

    /// The units that an element stands around: the stretch of free ones with the most attention to its text over that to all else.
    fn span(&self, element: &Element, all: &Range<usize>, taken: &[bool]) -> Range<usize> {
        let free = |unit: usize| !taken[unit - all.start];
        let begin = all.clone().find(|unit| free(*unit)).unwrap_or(all.end);
        let end = all.clone().rev().find(|unit| free(*unit)).map_or(begin, |unit| unit + 1);
        if begin >= end {
            return begin..begin;
        }
        let columns = self.markup.columns.of(&element.text);
        let (is_left, is_right) = (element.open.is_none(), element.close.is_none());
        if !is_left
            && !is_right
            && let Some(copy) = self.copy(element, begin..end).filter(|copy| copy.clone().all(free))
        {
            return copy;
        }
        let gain = |unit: usize| {
            let share = self.share(unit, &columns) - 0.5;
            // What a full stop attends to says little.
            if self.units[unit].is_word { share } else { share / 10.0 }
        };
        let mut best: Option<(f32, Range<usize>)> = None;
        let mut offer = |sum: f32, span: Range<usize>| {
            if best.as_ref().is_none_or(|(most, _)| sum > *most) {
                best = Some((sum, span));
            }
        };
        let (mut sum, mut start) = (0.0, begin);
        for unit in begin..end {
            if !free(unit) {
                (sum, start) = (0.0, unit + 1);
                continue;
            }
            if sum < 0.0 && !is_left {
                (sum, start) = (0.0, unit);
            }
            sum += gain(unit);
            let reaches = !is_right || unit + 1 == end;
            if reaches && (!is_left || start == begin) {
                offer(sum, start..unit + 1);
            }
        }
        let best = best.filter(|(sum, _)| is_left || is_right || *sum > 0.0).map(|(_, span)| span);
        // No unit is for the most part its own: the one that has most of it.
        let share = |unit: usize| self.share(unit, &columns) * if self.units[unit].is_word { 1.0 } else { 0.1 };
        let most = || (begin..end).filter(|unit| free(*unit)).map(|unit| (share(unit), unit));
        let nearest = || most().reduce(|best, other| if other.0 > best.0 { other } else { best });
        best.or_else(|| nearest().map(|(_, unit)| unit..unit + 1)).unwrap_or(begin..begin)
    }

    /// The units that spell an element's text, if they are the only ones: a name, a number.
    fn copy(&self, element: &Element, all: Range<usize>) -> Option<Range<usize>> {
        let text = self.markup.text[element.text.clone()].trim();
        if !text.contains(char::is_alphanumeric) {
            return None;
        }
        let (from, to) = (self.unit_start(all.start), self.unit_end(all.end));
        let mut found = self.text.get(from..to)?.match_indices(text).filter_map(|(at, _)| {
            let range = from + at..from + at + text.len();
            let first = all.clone().find(|unit| self.units[*unit].range.start == range.start)?;
            let last = (first..all.end).find(|unit| self.units[*unit].range.end == range.end)?;
            Some(first..last + 1)
        });
        found.next().filter(|_| found.next().is_none())
    }
}
