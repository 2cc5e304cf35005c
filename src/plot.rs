//! Charts as inline SVG: lines with intervals, bars, points, heat maps, with axes, ticks and a legend.
//!
//! A chart is a string to put into an HTML page or, with [`STYLE`] in front, into a file of its own. Colours are CSS variables,
//! defined for light and dark by [`STYLE`] once per page; nothing is fetched from anywhere. The same data gives the same bytes.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Defines the colours for light and dark, and the text of charts. Put it into a page's `<style>` element once.
pub const STYLE: &str = "\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --faint: #6a7480; --grid: #e3e7eb;\
 --c0: #2563b0; --c1: #c2571a; --c2: #2d8a4e; --c3: #8a4fb5; --c4: #b0324f; --c5: #5f6b7a; --heat: #2563b0; }\n\
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --faint: #98a2ad; --grid: #2c3238;\
 --c0: #6ea8ee; --c1: #f0965a; --c2: #6cc98c; --c3: #c39be6; --c4: #ef7f97; --c5: #aab4c0; --heat: #6ea8ee; } }\n\
svg.chart { font: 12px system-ui, sans-serif; fill: var(--ink); max-width: 100%; height: auto; }\n";

/// Colours that series take in turn.
const COLORS: usize = 6;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Room around the plotting area: left for numbers, top for the title, right, bottom for numbers and the axis' name.
const LEFT: f64 = 62.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 46.0;
/// Height of a line of the legend, which stands below the chart.
const LEGEND_LINE: f64 = 18.0;
/// Between the axis' name and the legend.
const LEGEND_GAP: f64 = 8.0;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line through the points, with a dot on each where they are few.
    Line,
    /// A dashed line without dots.
    Dashed,
    /// Dots alone.
    Points,
    /// A bar from 0, series side by side.
    Bars,
}

/// Numbers that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// How to draw it.
    pub mark: Mark,
    /// (x, y); a pair that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Lower and upper bound of each point's y, or nothing.
    pub intervals: Vec<(f64, f64)>,
}

impl Series {
    /// A series without intervals.
    pub fn new(name: impl Into<String>, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        Series { name: name.into(), mark, points, intervals: Vec::new() }
    }

    /// The same with an interval for each point: a band behind a line, a bar with caps elsewhere.
    pub fn with_intervals(self, intervals: Vec<(f64, f64)>) -> Self {
        Series { intervals, ..self }
    }
}

/// A chart with two axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x_name: String,
    /// Along the vertical axis.
    pub y_name: String,
    /// Drawn in order, the later ones on top.
    pub series: Vec<Series>,
    /// Names at x = 0, 1, 2, ... in place of numbers.
    pub categories: Vec<String>,
    /// Range of the vertical axis that is shown in any case.
    pub y_shows: Option<RangeInclusive<f64>>,
}

impl Chart {
    /// A chart without series.
    pub fn new(title: impl Into<String>, x_name: impl Into<String>, y_name: impl Into<String>) -> Self {
        Chart { title: title.into(), x_name: x_name.into(), y_name: y_name.into(), ..Chart::default() }
    }

    /// Adds a series.
    pub fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// The `<svg>` element. Without a finite point it says so in the chart's place.
    pub fn svg(&self) -> String {
        let legend = self.series.len() > 1;
        let height =
            HEIGHT + if legend { LEGEND_GAP + LEGEND_LINE * self.series.len().div_ceil(2) as f64 } else { 0.0 };
        let mut svg = open_svg(&self.title, height);
        let Some(frame) = self.frame() else {
            text(&mut svg, WIDTH / 2.0, HEIGHT / 2.0, "middle", "var(--faint)", "no data");
            return svg + "</svg>\n";
        };
        self.draw_axes(&frame, &mut svg);
        let bars = self.series.iter().filter(|s| s.mark == Mark::Bars).count();
        let mut bar = 0;
        for (i, series) in self.series.iter().enumerate() {
            let color = format!("var(--c{})", i % COLORS);
            match series.mark {
                Mark::Bars => {
                    draw_bars(series, &frame, (bar, bars), &color, &mut svg);
                    bar += 1;
                }
                Mark::Points => draw_points(series, &frame, &color, &mut svg),
                Mark::Line | Mark::Dashed => draw_line(series, &frame, &color, &mut svg),
            }
            if legend {
                let (x, y) = (LEFT + (i % 2) as f64 * 240.0, HEIGHT + LEGEND_GAP + LEGEND_LINE * (i / 2) as f64);
                let _ = writeln!(svg, r#"<rect x="{x:.1}" y="{:.1}" width="14" height="4" fill="{color}"/>"#, y - 2.0);
                text(&mut svg, x + 20.0, y + 4.0, "start", "var(--ink)", &series.name);
            }
        }
        svg + "</svg>\n"
    }

    /// What both axes show; nothing without a finite point.
    fn frame(&self) -> Option<Frame> {
        let points = || self.series.iter().flat_map(|s| s.points.iter()).filter(|p| p.0.is_finite() && p.1.is_finite());
        let bounds = self.series.iter().flat_map(|s| s.intervals.iter()).flat_map(|(low, high)| [*low, *high]);
        let zero = self.series.iter().any(|s| s.mark == Mark::Bars).then_some(0.0);
        let shown = self.y_shows.iter().flat_map(|range| [*range.start(), *range.end()]);
        points().next()?;
        let ys = points().map(|p| p.1).chain(bounds.filter(|y| y.is_finite())).chain(zero).chain(shown);
        let y = Axis::around(ys);
        let x = match self.categories.len() {
            0 => Axis::within(points().map(|p| p.0)),
            count => Axis { low: -0.5, high: count as f64 - 0.5, step: 1.0, ticks: Vec::new() },
        };
        Some(Frame { x, y })
    }

    fn draw_axes(&self, frame: &Frame, svg: &mut String) {
        let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
        for &tick in &frame.y.ticks {
            let y = frame.y(tick);
            let _ =
                writeln!(svg, r#"<line x1="{left:.1}" x2="{right:.1}" y1="{y:.1}" y2="{y:.1}" stroke="var(--grid)"/>"#);
            text(svg, left - 6.0, y + 4.0, "end", "var(--faint)", &frame.y.label(tick));
        }
        let _ = writeln!(
            svg,
            r#"<path d="M{left:.1} {top:.1}V{bottom:.1}H{right:.1}" fill="none" stroke="var(--faint)"/>"#
        );
        for &tick in &frame.x.ticks {
            let x = frame.x(tick);
            let _ = writeln!(
                svg,
                r#"<line x1="{x:.1}" x2="{x:.1}" y1="{bottom:.1}" y2="{:.1}" stroke="var(--faint)"/>"#,
                bottom + 4.0
            );
            text(svg, x, bottom + 17.0, "middle", "var(--faint)", &frame.x.label(tick));
        }
        for (i, name) in self.categories.iter().enumerate() {
            text(svg, frame.x(i as f64), bottom + 17.0, "middle", "var(--faint)", name);
        }
        text(svg, (left + right) / 2.0, bottom + 36.0, "middle", "var(--ink)", &self.x_name);
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            svg,
            r#"<text transform="translate(14 {middle:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            escape(&self.y_name)
        );
    }
}

/// A table of numbers as coloured cells: `values[row][column]`, the darkest for the largest; not finite ones stay empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeatMap {
    /// Above the map.
    pub title: String,
    /// What columns are, and the name of each.
    pub columns: (String, Vec<String>),
    /// What rows are, and the name of each.
    pub rows: (String, Vec<String>),
    /// One list for each row, of one number for each column.
    pub values: Vec<Vec<f64>>,
    /// Digits behind the point.
    pub digits: usize,
}

impl HeatMap {
    /// The `<svg>` element.
    pub fn svg(&self) -> String {
        let cell_height = 26.0;
        let (count_rows, count_columns) = (self.rows.1.len(), self.columns.1.len());
        let height = TOP + cell_height * count_rows as f64 + BOTTOM;
        let mut svg = open_svg(&self.title, height);
        let finite = || self.values.iter().flatten().copied().filter(|value| value.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        let left = LEFT + 60.0;
        let cell_width = (WIDTH - RIGHT - left) / count_columns.max(1) as f64;
        for (r, (name, values)) in self.rows.1.iter().zip(&self.values).enumerate() {
            let y = TOP + cell_height * r as f64;
            text(&mut svg, left - 6.0, y + 17.0, "end", "var(--faint)", name);
            for (c, value) in values.iter().take(count_columns).enumerate().filter(|(_, value)| value.is_finite()) {
                let x = left + cell_width * c as f64;
                let share = if high > low { (value - low) / (high - low) } else { 0.5 };
                let (w, h, opacity) = (cell_width - 1.0, cell_height - 1.0, 0.06 + 0.5 * share);
                let _ = writeln!(
                    svg,
                    r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" fill="var(--heat)" fill-opacity="{opacity:.3}"/>"#
                );
                let label = format!("{value:.*}", self.digits);
                text(&mut svg, x + cell_width / 2.0, y + 17.0, "middle", "var(--ink)", &label);
            }
        }
        let bottom = TOP + cell_height * count_rows as f64;
        for (c, name) in self.columns.1.iter().enumerate() {
            text(&mut svg, left + cell_width * (c as f64 + 0.5), bottom + 16.0, "middle", "var(--faint)", name);
        }
        text(&mut svg, (left + WIDTH - RIGHT) / 2.0, bottom + 36.0, "middle", "var(--ink)", &self.columns.0);
        let middle = (TOP + bottom) / 2.0;
        let _ = writeln!(
            svg,
            r#"<text transform="translate(14 {middle:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            escape(&self.rows.0)
        );
        svg + "</svg>\n"
    }
}

/// Both axes, and where data lies between them.
struct Frame {
    x: Axis,
    y: Axis,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (WIDTH - RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - BOTTOM - TOP)
    }
}

/// A linear axis and its ticks.
#[derive(Debug, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    /// From tick to tick.
    step: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// From tick to tick around the values.
    fn around(values: impl Iterator<Item = f64>) -> Axis {
        let Axis { low, high, step, .. } = Axis::range(values);
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
        Axis { low: ticks[0], high: ticks[ticks.len() - 1], step, ticks }
    }

    /// From the least value to the largest, with the ticks in between.
    fn within(values: impl Iterator<Item = f64>) -> Axis {
        let Axis { low, high, step, .. } = Axis::range(values);
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        Axis { low, high, step, ticks: (first..=last).map(|i| i as f64 * step).collect() }
    }

    /// The values' range, widened where it is empty, without ticks.
    fn range(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        // A range that its own numbers can hardly tell apart cannot be drawn.
        let least = 1e-9 * low.abs().max(high.abs()).max(1e-9);
        let half = match high - low > least {
            true => 0.0,
            false if low == 0.0 => 0.5,
            false => low.abs() / 2.0,
        };
        let (low, high) = (low - half, high + half);
        Axis { low, high, step: tick_step(high - low), ticks: Vec::new() }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// A tick in as few digits as tell it from its neighbours.
    fn label(&self, tick: f64) -> String {
        let step = self.step;
        let tick = if tick.abs() < step / 2.0 { 0.0 } else { tick };
        if tick != 0.0 && (tick.abs() >= 1e6 || step < 1e-5) {
            return format!("{tick:.1e}");
        }
        format!("{tick:.*}", (-step.log10().floor()).max(0.0) as usize)
    }
}

/// 1, 2 or 5 times a power of ten: four to eight of them make `range`.
fn tick_step(range: f64) -> f64 {
    let power = 10f64.powf((range / 6.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.into_iter().map(|s| s * power).find(|step| range / step < 7.001).unwrap_or(10.0 * power)
}

fn open_svg(title: &str, height: f64) -> String {
    let label = escape(title);
    let mut svg = format!(
        "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{label}\">\n"
    );
    let _ = writeln!(svg, r#"<text x="{LEFT:.1}" y="18" font-weight="600" fill="var(--ink)">{label}</text>"#);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, fill: &str, content: &str) {
    let content = escape(content);
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{fill}">{content}</text>"#);
}

/// A chart as a file of its own, for a paper: the light colours, on white, without style sheets, which few programs other than browsers
/// read.
pub fn standalone(svg: &str) -> String {
    let light = STYLE.split("@media").next().unwrap_or_default();
    let mut svg = svg.to_owned();
    for (name, color) in light.split("--").skip(1).filter_map(|part| part.split_once(": ")) {
        let color = color.split(';').next().unwrap_or_default();
        svg = svg.replace(&format!("var(--{name})"), color);
    }
    let start = svg.find('>').map_or(0, |end| end + 1);
    let (open, rest) = svg.split_at(start);
    let open = open.replace("class=\"chart\"", "font-family=\"sans-serif\" font-size=\"12\" fill=\"#1c2024\"");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{open}\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>{rest}"
    )
}

/// Text as XML and HTML take it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Runs of neighbouring finite points, as index ranges.
fn runs(points: &[(f64, f64)]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut start = None;
    for (i, point) in points.iter().chain([&(f64::NAN, f64::NAN)]).enumerate() {
        match (start, point.0.is_finite() && point.1.is_finite()) {
            (None, true) => start = Some(i),
            (Some(first), false) => {
                found.push(first..i);
                start = None;
            }
            _ => {}
        }
    }
    found
}

/// Points that still get a dot each.
const DOTTED: usize = 40;

fn draw_line(series: &Series, frame: &Frame, color: &str, svg: &mut String) {
    let place = |x: f64, y: f64| format!("{:.1} {:.1}", frame.x(x), frame.y(y));
    let dash = if series.mark == Mark::Dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    for run in runs(&series.points) {
        let points = &series.points[run.clone()];
        if let Some(bounds) =
            series.intervals.get(run).filter(|b| b.iter().all(|(l, h)| l.is_finite() && h.is_finite()))
        {
            let upper = points.iter().zip(bounds).map(|(p, b)| place(p.0, b.1));
            let lower = points.iter().zip(bounds).rev().map(|(p, b)| place(p.0, b.0));
            let outline = upper.chain(lower).collect::<Vec<_>>().join("L");
            let _ = writeln!(svg, r#"<path d="M{outline}Z" fill="{color}" fill-opacity="0.15"/>"#);
        }
        let line = points.iter().map(|p| place(p.0, p.1)).collect::<Vec<_>>().join("L");
        let _ = writeln!(svg, r#"<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>"#);
        if (series.points.len() <= DOTTED && series.mark == Mark::Line) || points.len() == 1 {
            points.iter().for_each(|p| dot(frame, *p, 2.6, color, svg));
        }
    }
}

fn draw_points(series: &Series, frame: &Frame, color: &str, svg: &mut String) {
    for (i, point) in series.points.iter().enumerate().filter(|(_, p)| p.0.is_finite() && p.1.is_finite()) {
        whisker(frame, frame.x(point.0), series.intervals.get(i), color, svg);
        dot(frame, *point, 3.0, color, svg);
    }
}

/// Bars of the `which.0`-th of `which.1` series that share a place.
fn draw_bars(series: &Series, frame: &Frame, which: (usize, usize), color: &str, svg: &mut String) {
    let mut xs: Vec<f64> = series.points.iter().map(|p| p.0).filter(|x| x.is_finite()).collect();
    xs.sort_unstable_by(f64::total_cmp);
    let closest = xs.windows(2).map(|pair| pair[1] - pair[0]).filter(|d| *d > 0.0).fold(1.0, f64::min);
    let place = (frame.x(closest) - frame.x(0.0)) * 0.76;
    let width = place / which.1 as f64;
    for (i, point) in series.points.iter().enumerate().filter(|(_, p)| p.0.is_finite() && p.1.is_finite()) {
        let left = frame.x(point.0) - place / 2.0 + width * which.0 as f64;
        let (from, to) = (frame.y(0.0), frame.y(point.1));
        let (top, height) = (from.min(to), (from - to).abs());
        let _ = writeln!(
            svg,
            r#"<rect x="{left:.1}" y="{top:.1}" width="{:.1}" height="{height:.1}" fill="{color}" fill-opacity="0.8"/>"#,
            width.max(1.0) - 0.5
        );
        whisker(frame, left + width / 2.0, series.intervals.get(i), "var(--ink)", svg);
    }
}

/// An interval as a vertical line with caps.
fn whisker(frame: &Frame, x: f64, bounds: Option<&(f64, f64)>, color: &str, svg: &mut String) {
    let Some(&(low, high)) = bounds.filter(|(low, high)| low.is_finite() && high.is_finite()) else { return };
    let (low, high) = (frame.y(low), frame.y(high));
    let (left, right) = (x - 3.0, x + 3.0);
    let _ = writeln!(
        svg,
        r#"<path d="M{left:.1} {low:.1}H{right:.1}M{x:.1} {low:.1}V{high:.1}M{left:.1} {high:.1}H{right:.1}" fill="none" stroke="{color}"/>"#
    );
}

fn dot(frame: &Frame, point: (f64, f64), radius: f64, color: &str, svg: &mut String) {
    let (x, y) = (frame.x(point.0), frame.y(point.1));
    let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{color}"/>"#);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_around_the_data() {
        for (range, step) in [(1.0, 0.2), (10.0, 2.0), (99.0, 20.0), (0.07, 0.01), (6.0, 1.0), (3e6, 5e5)] {
            assert!((tick_step(range) / step - 1.0).abs() < 1e-12, "{range}: {}", tick_step(range));
        }
        let axis = Axis::around([0.13, 0.97].into_iter());
        assert_eq!((axis.low, axis.high, axis.ticks.len()), (0.0, 1.0, 6));
        assert_eq!(
            axis.ticks.iter().map(|t| axis.label(*t)).collect::<Vec<_>>(),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        // The axis is longer than the data, which chose the ticks.
        let axis = Axis::around([0.4, 3.6].into_iter());
        let labels: Vec<String> = axis.ticks.iter().map(|t| axis.label(*t)).collect();
        assert_eq!((axis.step, &labels[..2], labels.len()), (0.5, &["0.0".to_owned(), "0.5".to_owned()][..], 9));
        // One value, zero, negative ones.
        for values in [vec![5.0], vec![0.0], vec![-3.0, -1.0], vec![1e12, 1e12 + 1.0]] {
            let axis = Axis::around(values.iter().copied());
            assert!(axis.low < axis.high && axis.ticks.len() >= 2, "{values:?}: {axis:?}");
            assert!(values.iter().all(|v| axis.low <= *v && *v <= axis.high), "{values:?}: {axis:?}");
        }
    }

    #[test]
    fn points_lie_where_their_numbers_say() {
        let line = Series::new("a", Mark::Line, vec![(0.0, 0.0), (10.0, 1.0)]);
        let svg = Chart::new("t", "x", "y").with(line.with_intervals(vec![(0.0, 0.0), (0.5, 1.0)])).svg();
        let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
        assert!(svg.contains(&format!(r#"<path d="M{left:.1} {bottom:.1}L{right:.1} {top:.1}" fill="none""#)), "{svg}");
        let middle = (top + bottom) / 2.0;
        let band = format!("M{left:.1} {bottom:.1}L{right:.1} {top:.1}L{right:.1} {middle:.1}L{left:.1} {bottom:.1}Z");
        assert!(svg.contains(&band), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn gaps_part_a_line() {
        let nan = f64::NAN;
        assert_eq!(runs(&[(0.0, 1.0), (1.0, nan), (2.0, 1.0), (3.0, 1.0), (nan, 1.0)]), [0..1, 2..4]);
        let gap = Series::new("a", Mark::Dashed, vec![(0.0, 1.0), (1.0, 2.0), (2.0, nan), (3.0, 1.0), (4.0, 2.0)]);
        assert_eq!(Chart::default().with(gap).svg().matches("stroke-dasharray").count(), 2);
    }

    #[test]
    fn a_chart_without_data_says_so() {
        for series in [vec![], vec![Series::new("a", Mark::Line, vec![(f64::NAN, 1.0)])]] {
            assert!(Chart { series, ..Chart::default() }.svg().contains("no data"));
        }
    }

    #[test]
    fn names_are_escaped_and_colours_are_variables() {
        let bars = |name: &str| Series::new(name, Mark::Bars, vec![(0.0, 3.0), (1.0, -1.0)]);
        let mut chart = Chart::new("<a> & \"b\"", "x", "y").with(bars("one")).with(bars("two"));
        chart.categories = vec!["1-8".into(), "9+".into()];
        let svg = chart.svg();
        assert!(svg.contains("&lt;a&gt; &amp; &quot;b&quot;") && !svg.contains("<a>"));
        assert!(svg.contains(">1-8</text>") && svg.contains(">one</text>") && svg.contains(">two</text>"));
        assert_eq!(svg.matches("fill-opacity=\"0.8\"").count(), 4);
        // No colour of its own, nothing fetched.
        assert!(!svg.contains('#') && svg.matches("http").count() == 1, "{svg}");
    }

    #[test]
    fn a_file_of_its_own_needs_no_style_sheet() {
        let line = Series::new("a", Mark::Line, vec![(0.0, 0.0), (1.0, 1.0)]);
        let svg = standalone(&Chart::new("t", "x", "y").with(line).svg());
        assert!(svg.starts_with("<?xml ") && svg.ends_with("</svg>\n") && svg.matches("<svg").count() == 1);
        assert!(!svg.contains("var(") && !svg.contains("class=") && svg.contains("stroke=\"#2563b0\""), "{svg}");
    }

    #[test]
    fn a_heat_map_shows_its_numbers() {
        let map = HeatMap {
            title: "BLEU".into(),
            columns: ("beam".into(), vec!["1".into(), "4".into()]),
            rows: ("penalty".into(), vec!["none".into(), "gnmt".into()]),
            values: vec![vec![10.0, 20.0], vec![30.0, f64::NAN]],
            digits: 1,
        };
        let svg = map.svg();
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("fill-opacity=\"0.060\"") && svg.contains("fill-opacity=\"0.560\""));
        assert!(svg.contains(">30.0</text>") && !svg.contains("NaN"));
    }
}
