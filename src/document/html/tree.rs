//! The tags of a segment as a tree.

use std::ops::Range;

/// What a tag does in a line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TagKind {
    /// Begins an element of this name.
    Start(String),
    /// Ends one.
    End(String),
    /// Stands for itself: a comment, an element without content, or one whose content is not translated.
    Point,
}

/// A tag of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub kind: TagKind,
    /// Bytes of the document.
    pub raw: Range<usize>,
    /// The byte of the segment's text that it stands before.
    pub at: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    Element(Element),
    Point(Point),
}

/// An element around a part of a segment's text. Its start tag is missing if it begins in an earlier segment, its end tag if it ends in
/// a later one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub open: Option<Range<usize>>,
    pub close: Option<Range<usize>>,
    /// Bytes of the segment's text; not empty.
    pub text: Range<usize>,
    pub children: Vec<Node>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub raw: Range<usize>,
    pub at: usize,
}

/// Elements within elements, at most: beyond it the order of tags is kept instead.
const MAX_DEPTH: usize = 64;

/// An element whose end has not come yet.
struct Open {
    name: String,
    raw: Range<usize>,
    at: usize,
    children: Vec<Node>,
}

/// The tree of tags around a text; none if they are not nested, or too deep.
pub(super) fn build(tags: &[Tag], text: &str) -> Option<Vec<Node>> {
    let element = |open, close, range: Range<usize>, children| {
        let is_empty = text[range.clone()].chars().all(char::is_whitespace);
        element(open, close, range, is_empty, children)
    };
    let mut roots = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for Tag { kind, raw, at } in tags {
        let (raw, at) = (raw.clone(), *at);
        match kind {
            TagKind::Start(_) if open.len() == MAX_DEPTH => return None,
            TagKind::Start(name) => open.push(Open { name: name.clone(), raw, at, children: Vec::new() }),
            TagKind::Point => {
                open.last_mut().map_or(&mut roots, |open| &mut open.children).push(Node::Point(Point { raw, at }))
            }
            TagKind::End(name) => match open.pop() {
                Some(own) if own.name == *name => {
                    let node = element(Some(own.raw), Some(raw), own.at..at, own.children);
                    open.last_mut().map_or(&mut roots, |open| &mut open.children).push(node);
                }
                Some(_) => return None,
                // It has begun in an earlier segment. However many such there are, those before are within.
                None if depth_left(&roots) == MAX_DEPTH => return None,
                None => roots = vec![element(None, Some(raw), 0..at, std::mem::take(&mut roots))],
            },
        }
    }
    while let Some(own) = open.pop() {
        let node = element(Some(own.raw), None, own.at..text.len(), own.children);
        open.last_mut().map_or(&mut roots, |open| &mut open.children).push(node);
    }
    Some(roots)
}

/// How deep elements are nested that begin in an earlier segment.
fn depth_left(nodes: &[Node]) -> usize {
    let mut depth = 0;
    let mut nodes = nodes;
    while let Some(Node::Element(Element { open: None, children, .. })) = nodes.first() {
        depth += 1;
        nodes = children;
    }
    depth
}

/// An element, or a point if it is empty: without text, or with white space alone.
fn element(
    open: Option<Range<usize>>,
    close: Option<Range<usize>>,
    text: Range<usize>,
    is_empty: bool,
    children: Vec<Node>,
) -> Node {
    if !is_empty {
        return Node::Element(Element { open, close, text, children });
    }
    // Nothing but tags lies within.
    let start = open.as_ref().or(close.as_ref()).map_or(0, |tag| tag.start);
    let inner = children.iter().map(|child| match child {
        Node::Point(point) => point.raw.clone(),
        Node::Element(element) => element.open.clone().unwrap_or(0..0),
    });
    let (first, last) = inner.fold((start, start), |(first, last), raw| (first.min(raw.start), last.max(raw.end)));
    let last = [&open, &close].into_iter().flatten().fold(last, |last, tag| last.max(tag.end));
    Node::Point(Point { raw: first..last, at: text.start })
}

/// Takes off what stands around all of the text, and needs no place within it: bytes of the document before and behind.
pub(super) fn strip(nodes: &mut Vec<Node>, length: usize, raw: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let (mut before, mut behind) = (raw.start..raw.start, raw.end..raw.end);
    loop {
        let is_before = |node: &&Node| matches!(node, Node::Point(point) if point.at == 0);
        for node in nodes.drain(..nodes.iter().take_while(is_before).count()) {
            if let Node::Point(point) = node {
                before.end = before.end.max(point.raw.end);
            }
        }
        while let Some(Node::Point(point)) = nodes.last() {
            if point.at < length {
                break;
            }
            behind.start = behind.start.min(point.raw.start);
            nodes.pop();
        }
        match nodes.pop() {
            Some(Node::Element(element)) if nodes.is_empty() && element.text == (0..length) => {
                before.end = element.open.map_or(before.end, |tag| tag.end);
                behind.start = element.close.map_or(behind.start, |tag| tag.start);
                *nodes = element.children;
            }
            Some(node) => {
                nodes.push(node);
                return (before, behind);
            }
            None => return (before, behind),
        }
    }
}
