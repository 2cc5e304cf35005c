//! A drawing as a PDF of one page, for a paper: vectors and text in Helvetica, which every viewer has.

use std::collections::{BTreeMap, BTreeSet};

use pdf_writer::{Content, Name, Pdf, Rect, Ref, Str, TextStr};

use super::drawing::{Anchor, Color, Drawing, FONT_SIZE, Shape, Text};

/// Widths of Helvetica's printable ASCII characters, from the space on, in thousandths of the font's size (Adobe's font metrics).
#[rustfmt::skip]
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584,
    584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278,
    278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500,
    500, 334, 260, 334, 584,
];

/// A circle's quarter as a Bézier curve: where its control points lie.
const QUARTER: f32 = 0.552_284_8;

const CATALOG: Ref = Ref::new(1);
const PAGES: Ref = Ref::new(2);
const PAGE: Ref = Ref::new(3);
const CONTENT: Ref = Ref::new(4);
const INFORMATION: Ref = Ref::new(5);
/// Of the plain and of the bold font; then come the opacities.
const FONTS: [Ref; 2] = [Ref::new(6), Ref::new(7)];
const OPACITIES: i32 = 8;

const FONT_NAMES: [Name; 2] = [Name(b"F0"), Name(b"F1")];

impl Drawing {
    /// A PDF with the light colours, a pixel being a point. The same drawing gives the same bytes.
    pub fn pdf(&self) -> Vec<u8> {
        let opacities = self.opacities();
        let mut pdf = Pdf::new();
        pdf.catalog(CATALOG).pages(PAGES);
        pdf.pages(PAGES).kids([PAGE]).count(1);
        {
            let mut page = pdf.page(PAGE);
            page.parent(PAGES).contents(CONTENT).media_box(Rect::new(0.0, 0.0, self.width as f32, self.height as f32));
            let mut resources = page.resources();
            FONTS.iter().zip(FONT_NAMES).fold(resources.fonts(), |mut fonts, (font, name)| {
                fonts.pair(name, *font);
                fonts
            });
            opacities.values().fold(resources.ext_g_states(), |mut states, opacity| {
                states.pair(Name(opacity.name.as_bytes()), opacity.state);
                states
            });
        }
        for (font, base) in FONTS.into_iter().zip([Name(b"Helvetica"), Name(b"Helvetica-Bold")]) {
            pdf.type1_font(font).base_font(base).encoding_predefined(Name(b"WinAnsiEncoding"));
        }
        for (thousandths, opacity) in &opacities {
            pdf.ext_graphics(opacity.state).non_stroking_alpha(*thousandths as f32 / 1000.0);
        }
        pdf.stream(CONTENT, &self.content(&opacities));
        pdf.document_info(INFORMATION).title(TextStr(&self.title));
        pdf.finish()
    }

    /// The opacities that it needs.
    fn opacities(&self) -> Opacities {
        let of = |shape: &Shape| match shape {
            Shape::Area { opacity, .. } | Shape::Rectangle { opacity, .. } => Some(thousandths(*opacity)),
            _ => None,
        };
        let distinct: BTreeSet<u32> = self.shapes.iter().filter_map(of).collect();
        let states = (0..).map(|i| Opacity { name: format!("O{i}"), state: Ref::new(OPACITIES + i) });
        distinct.into_iter().zip(states).collect()
    }

    fn content(&self, opacities: &Opacities) -> Vec<u8> {
        let mut content = Content::new();
        // A page's origin is its left lower corner.
        content.transform([1.0, 0.0, 0.0, -1.0, 0.0, self.height as f32]);
        for shape in &self.shapes {
            content.save_state();
            draw(&mut content, shape, opacities);
            content.restore_state();
        }
        content.finish().into_vec()
    }
}

/// An opacity's name on the page, and its object.
struct Opacity {
    name: String,
    state: Ref,
}

/// By thousandths.
type Opacities = BTreeMap<u32, Opacity>;

fn thousandths(opacity: f64) -> u32 {
    (opacity * 1000.0).round() as u32
}

fn rgb(color: Color) -> [f32; 3] {
    let digits = color.light();
    [1, 3, 5].map(|at| {
        let value = digits.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        f32::from(value.unwrap_or(0)) / 255.0
    })
}

fn fill(content: &mut Content, color: Color, opacity: f64, opacities: &Opacities) {
    let [r, g, b] = rgb(color);
    content.set_fill_rgb(r, g, b);
    if let Some(opacity) = opacities.get(&thousandths(opacity)) {
        content.set_parameters(Name(opacity.name.as_bytes()));
    }
}

fn trace(content: &mut Content, points: &[(f64, f64)]) {
    for (i, &(x, y)) in points.iter().enumerate() {
        let (x, y) = (x as f32, y as f32);
        _ = if i == 0 { content.move_to(x, y) } else { content.line_to(x, y) };
    }
}

fn draw(content: &mut Content, shape: &Shape, opacities: &Opacities) {
    match shape {
        Shape::Lines { pieces, stroke } => {
            let [r, g, b] = rgb(stroke.color);
            content.set_stroke_rgb(r, g, b).set_line_width(stroke.width as f32);
            if stroke.dashed {
                content.set_dash_pattern([5.0, 4.0], 0.0);
            }
            pieces.iter().for_each(|piece| trace(content, piece));
            content.stroke();
        }
        Shape::Area { points, color, opacity } => {
            fill(content, *color, *opacity, opacities);
            trace(content, points);
            content.close_path().fill_nonzero();
        }
        Shape::Rectangle { x, y, width, height, color, opacity } => {
            fill(content, *color, *opacity, opacities);
            content.rect(*x as f32, *y as f32, *width as f32, *height as f32).fill_nonzero();
        }
        Shape::Dot { x, y, radius, color } => {
            fill(content, *color, 1.0, opacities);
            circle(content, *x as f32, *y as f32, *radius as f32);
        }
        Shape::Text(text) => write(content, text),
    }
}

fn circle(content: &mut Content, x: f32, y: f32, r: f32) {
    let k = QUARTER * r;
    content
        .move_to(x + r, y)
        .cubic_to(x + r, y + k, x + k, y + r, x, y + r)
        .cubic_to(x - k, y + r, x - r, y + k, x - r, y)
        .cubic_to(x - r, y - k, x - k, y - r, x, y - r)
        .cubic_to(x + k, y - r, x + r, y - k, x + r, y)
        .fill_nonzero();
}

/// Text as the fonts' encoding has it; what it lacks becomes a question mark.
fn encoded(text: &str) -> Vec<u8> {
    let encode = |c: char| match c {
        ' '..='~' | '\u{a0}'..='\u{ff}' => c as u8,
        '\u{2013}' => 0x96,
        '\u{2014}' => 0x97,
        '\u{2018}' => 0x91,
        '\u{2019}' => 0x92,
        '\u{201c}' => 0x93,
        '\u{201d}' => 0x94,
        '\u{2026}' => 0x85,
        _ => b'?',
    };
    text.chars().map(encode).collect()
}

/// How long a line of text is, as far as that is known: of letters with accents it is not.
fn length(text: &[u8]) -> f32 {
    let width = |byte: &u8| f32::from(WIDTHS.get(usize::from(byte.wrapping_sub(b' '))).copied().unwrap_or(556));
    text.iter().map(width).sum::<f32>() * FONT_SIZE as f32 / 1000.0
}

fn write(content: &mut Content, text: &Text) {
    let line = encoded(&text.content);
    let back = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => length(&line) / 2.0,
        Anchor::End => length(&line),
    };
    let (x, y) = (text.x as f32, text.y as f32);
    let [r, g, b] = rgb(text.color);
    content.set_fill_rgb(r, g, b).begin_text();
    content.set_font(FONT_NAMES[usize::from(text.bold)], FONT_SIZE as f32);
    // The page is upside down for shapes; letters are not.
    content.set_text_matrix(match text.upwards {
        true => [0.0, -1.0, -1.0, 0.0, x, y + back],
        false => [1.0, 0.0, 0.0, -1.0, x - back, y],
    });
    content.show(Str(&line)).end_text();
}

#[cfg(test)]
mod tests {
    use super::super::{Chart, Mark, Series};
    use super::*;

    fn chart(name: &str) -> Vec<u8> {
        let line = Series::new("a", Mark::Line, vec![(0.0, 0.0), (1.0, 1.0)]);
        let bars = Series::new(name, Mark::Bars, vec![(0.0, 0.5), (1.0, 1.0)]);
        Chart::new("a title", "x", "y").with(line.with_intervals(vec![(0.0, 0.1), (0.9, 1.1)])).with(bars).draw().pdf()
    }

    #[test]
    fn every_object_lies_where_the_table_says() {
        let pdf = chart("b");
        let find = |what: &str| pdf.windows(what.len()).rposition(|part| part == what.as_bytes()).expect(what);
        let table = String::from_utf8(pdf[find("\nxref") + 1..].to_vec()).expect("ASCII");
        let offsets: Vec<usize> = table
            .lines()
            .filter_map(|l| l.strip_suffix(" 00000 n").or(l.strip_suffix(" 00000 n ")))
            .map(|l| l.parse().expect("digits"))
            .collect();
        // Catalogue, pages, page, content, information, two fonts, and the opacities of bars, band and all else.
        assert_eq!(offsets.len(), 10, "{table}");
        for (i, offset) in offsets.iter().enumerate() {
            assert!(pdf[*offset..].starts_with(format!("{} 0 obj", i + 1).as_bytes()), "object {}", i + 1);
        }
        assert_eq!(pdf, chart("b"));
    }

    #[test]
    fn a_name_keeps_its_accents_and_its_brackets() {
        let name = "(\u{fc}ber) \u{4f60}";
        assert_eq!(encoded(name), b"(\xfcber) ?");
        // Other than ASCII is written in digits.
        let pdf = String::from_utf8_lossy(&chart(name)).to_lowercase();
        assert!(pdf.contains("<28fc62657229203f>"), "{pdf}");
        assert!((length(b"Wi") - 12.0 * 1.166).abs() < 1e-4);
    }
}
