//! What a chart is drawn with: shapes with named colours, as an SVG for a page or a file.

use std::fmt::Write as _;

/// Defines the colours for light and dark, and the text of charts. Put it into a page's `<style>` element once.
pub const STYLE: &str = "\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --faint: #6a7480; --grid: #e3e7eb;\
 --c0: #2563b0; --c1: #c2571a; --c2: #2d8a4e; --c3: #8a4fb5; --c4: #b0324f; --c5: #5f6b7a; --heat: #2563b0; }\n\
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --faint: #98a2ad; --grid: #2c3238;\
 --c0: #6ea8ee; --c1: #f0965a; --c2: #6cc98c; --c3: #c39be6; --c4: #ef7f97; --c5: #aab4c0; --heat: #6ea8ee; } }\n\
svg.chart { font: 12px system-ui, sans-serif; fill: var(--ink); max-width: 100%; height: auto; }\n";

/// Font size of all text, in pixels.
pub(super) const FONT_SIZE: f64 = 12.0;

/// A colour of [`STYLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Paper,
    Ink,
    Faint,
    Grid,
    Heat,
    /// Of the series of this index; they are taken in turn.
    Series(usize),
}

impl Color {
    /// Its variable, without the dashes.
    fn name(self) -> &'static str {
        match self {
            Color::Paper => "paper",
            Color::Ink => "ink",
            Color::Faint => "faint",
            Color::Grid => "grid",
            Color::Heat => "heat",
            Color::Series(i) => ["c0", "c1", "c2", "c3", "c4", "c5"][i % 6],
        }
    }

    fn css(self) -> String {
        format!("var(--{})", self.name())
    }

    /// Its light value, as `#rrggbb`.
    pub(super) fn light(self) -> &'static str {
        let start = STYLE.split_once(&format!("--{}: ", self.name())).map_or("", |(_, rest)| rest);
        start.get(..7).unwrap_or("#000000")
    }
}

/// How the outline of a path is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stroke {
    pub color: Color,
    pub width: f64,
    pub dashed: bool,
}

impl Stroke {
    pub fn thin(color: Color) -> Self {
        Stroke { color, width: 1.0, dashed: false }
    }
}

/// A part of a drawing; coordinates are pixels from the left upper corner.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// Straight lines from point to point, in pieces.
    Lines {
        pieces: Vec<Vec<(f64, f64)>>,
        stroke: Stroke,
    },
    /// A closed, filled outline.
    Area {
        points: Vec<(f64, f64)>,
        color: Color,
        opacity: f64,
    },
    Rectangle {
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        color: Color,
        opacity: f64,
    },
    Dot {
        x: f64,
        y: f64,
        radius: f64,
        color: Color,
    },
    Text(Text),
}

/// Where text stands on its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Text {
    pub x: f64,
    pub y: f64,
    pub anchor: Anchor,
    pub color: Color,
    pub bold: bool,
    /// Reads upwards.
    pub upwards: bool,
    pub content: String,
}

/// A drawn chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    pub(super) title: String,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) shapes: Vec<Shape>,
}

impl Drawing {
    /// Adds text that is read from left to right.
    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, color: Color, content: &str) {
        let content = content.to_owned();
        self.shapes.push(Shape::Text(Text { x, y, anchor, color, bold: false, upwards: false, content }));
    }

    /// Adds lines in one piece.
    pub(super) fn line(&mut self, points: Vec<(f64, f64)>, stroke: Stroke) {
        self.shapes.push(Shape::Lines { pieces: vec![points], stroke });
    }

    /// An `<svg>` element for a page that has [`STYLE`].
    pub fn svg(&self) -> String {
        self.svg_with("class=\"chart\"", &Color::css)
    }

    /// An SVG as a file of its own, for a paper: the light colours, on white, without style sheets, which few programs other than
    /// browsers read.
    pub fn svg_file(&self) -> String {
        let ink = Color::Ink.light();
        let attributes = format!("font-family=\"sans-serif\" font-size=\"{FONT_SIZE}\" fill=\"{ink}\"");
        let svg = self.svg_with(&attributes, &|color| color.light().to_owned());
        let paper = format!(">\n<rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n", Color::Paper.light());
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", svg.replacen(">\n", &paper, 1))
    }

    fn svg_with(&self, attributes: &str, color: &dyn Fn(Color) -> String) -> String {
        let Drawing { width, height, .. } = self;
        let mut svg = format!(
            "<svg {attributes} xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.title)
        );
        self.shapes.iter().for_each(|shape| write_shape(&mut svg, shape, color));
        svg + "</svg>\n"
    }
}

/// Points of a path, from `M` on.
fn path(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    format!("M{}", points.join("L"))
}

fn write_shape(svg: &mut String, shape: &Shape, color: &dyn Fn(Color) -> String) {
    let opaque = |opacity: f64| match opacity {
        1.0 => String::new(),
        opacity => format!(" fill-opacity=\"{opacity:.3}\""),
    };
    let _ = match shape {
        Shape::Lines { pieces, stroke } => {
            let d: String = pieces.iter().map(|piece| path(piece)).collect();
            let dash = if stroke.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let (color, width) = (color(stroke.color), stroke.width);
            writeln!(svg, r#"<path d="{d}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>"#)
        }
        Shape::Area { points, color: fill, opacity } => {
            writeln!(svg, r#"<path d="{}Z" fill="{}"{}/>"#, path(points), color(*fill), opaque(*opacity))
        }
        Shape::Rectangle { x, y, width, height, color: fill, opacity } => writeln!(
            svg,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{}"{}/>"#,
            color(*fill),
            opaque(*opacity)
        ),
        Shape::Dot { x, y, radius, color: fill } => {
            writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{}"/>"#, color(*fill))
        }
        Shape::Text(text) => {
            let Text { x, y, .. } = text;
            let place = match text.upwards {
                true => format!("transform=\"translate({x:.1} {y:.1}) rotate(-90)\""),
                false => format!("x=\"{x:.1}\" y=\"{y:.1}\""),
            };
            let anchor = match text.anchor {
                Anchor::Start => "",
                Anchor::Middle => " text-anchor=\"middle\"",
                Anchor::End => " text-anchor=\"end\"",
            };
            let weight = if text.bold { " font-weight=\"600\"" } else { "" };
            let content = escape(&text.content);
            writeln!(svg, r#"<text {place}{anchor}{weight} fill="{}">{content}</text>"#, color(text.color))
        }
    };
}

/// Text as XML and HTML take it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
