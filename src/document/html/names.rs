//! What the elements of HTML mean to a translation.

/// Elements that bound sentences. All others, those without a name in HTML among them, stand within one.
const BLOCKS: [&str; 70] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "caption",
    "center",
    "col",
    "colgroup",
    "dd",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "frame",
    "frameset",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hgroup",
    "hr",
    "html",
    "iframe",
    "legend",
    "li",
    "listing",
    "main",
    "marquee",
    "menu",
    "menuitem",
    "nav",
    "noembed",
    "noframes",
    "noscript",
    "ol",
    "optgroup",
    "option",
    "p",
    "plaintext",
    "pre",
    "rt",
    "search",
    "section",
    "select",
    "summary",
    "table",
    "tbody",
    "td",
    "template",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
    "xmp",
];

/// Elements without content, and so without an end tag.
const VOID: [&str; 15] = [
    "area", "base", "br", "col", "embed", "frame", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
];

/// Elements whose content is not translated.
const UNTOUCHED: [&str; 21] = [
    "applet",
    "audio",
    "canvas",
    "code",
    "iframe",
    "kbd",
    "math",
    "noembed",
    "noframes",
    "noscript",
    "object",
    "plaintext",
    "samp",
    "script",
    "style",
    "svg",
    "textarea",
    "tt",
    "var",
    "video",
    "xmp",
];

/// Elements whose end tag is often left out: the next one of the same name ends them.
const CLOSED_BY_NEXT: [&str; 9] = ["dd", "dt", "li", "optgroup", "option", "p", "td", "th", "tr"];

/// Elements in which only their own end tag is a tag.
const RAW_TEXT: [&str; 9] =
    ["iframe", "noembed", "noframes", "plaintext", "script", "style", "textarea", "title", "xmp"];

pub(super) fn is_raw_text(name: &str) -> bool {
    RAW_TEXT.contains(&name)
}

pub(super) fn is_block(name: &str) -> bool {
    BLOCKS.contains(&name)
}

pub(super) fn is_void(name: &str) -> bool {
    VOID.contains(&name)
}

pub(super) fn is_untouched(name: &str) -> bool {
    UNTOUCHED.contains(&name)
}

pub(super) fn is_closed_by_next(name: &str) -> bool {
    CLOSED_BY_NEXT.contains(&name)
}
