//! Charts: lines with intervals, bars, points, heat maps, with axes, ticks and a legend.
//!
//! A chart is drawn as an SVG to put into an HTML page with [`STYLE`], or as an SVG or PDF file of its own. Colours of a page are CSS
//! variables, defined for light and dark by [`STYLE`] once; nothing is fetched from anywhere. The same data gives the same bytes.

mod drawing;
mod pdf;

use std::ops::RangeInclusive;

use drawing::{Anchor, Color, Shape, Stroke, Text};
pub use drawing::{Drawing, STYLE, escape};

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

    /// The `<svg>` element of a page.
    pub fn svg(&self) -> String {
        self.draw().svg()
    }

    /// Without a finite point the drawing says so in the chart's place.
    pub fn draw(&self) -> Drawing {
        let legend = self.series.len() > 1;
        let height =
            HEIGHT + if legend { LEGEND_GAP + LEGEND_LINE * self.series.len().div_ceil(2) as f64 } else { 0.0 };
        let mut drawing = titled(&self.title, height);
        let Some(frame) = self.frame() else {
            drawing.text((WIDTH / 2.0, HEIGHT / 2.0), Anchor::Middle, Color::Faint, "no data");
            return drawing;
        };
        self.draw_axes(&frame, &mut drawing);
        let bars = self.series.iter().filter(|s| s.mark == Mark::Bars).count();
        let mut bar = 0;
        for (i, series) in self.series.iter().enumerate() {
            let color = Color::Series(i);
            match series.mark {
                Mark::Bars => {
                    draw_bars(series, &frame, (bar, bars), color, &mut drawing);
                    bar += 1;
                }
                Mark::Points => draw_points(series, &frame, color, &mut drawing),
                Mark::Line | Mark::Dashed => draw_line(series, &frame, color, &mut drawing),
            }
            if legend {
                let (x, y) = (LEFT + (i % 2) as f64 * 240.0, HEIGHT + LEGEND_GAP + LEGEND_LINE * (i / 2) as f64);
                drawing.shapes.push(Shape::Rectangle { x, y: y - 2.0, width: 14.0, height: 4.0, color, opacity: 1.0 });
                drawing.text((x + 20.0, y + 4.0), Anchor::Start, Color::Ink, &series.name);
            }
        }
        drawing
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

    fn draw_axes(&self, frame: &Frame, drawing: &mut Drawing) {
        let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
        for &tick in &frame.y.ticks {
            let y = frame.y(tick);
            drawing.line(vec![(left, y), (right, y)], Stroke::thin(Color::Grid));
            drawing.text((left - 6.0, y + 4.0), Anchor::End, Color::Faint, &frame.y.label(tick));
        }
        drawing.line(vec![(left, top), (left, bottom), (right, bottom)], Stroke::thin(Color::Faint));
        for &tick in &frame.x.ticks {
            let x = frame.x(tick);
            drawing.line(vec![(x, bottom), (x, bottom + 4.0)], Stroke::thin(Color::Faint));
            drawing.text((x, bottom + 17.0), Anchor::Middle, Color::Faint, &frame.x.label(tick));
        }
        for (i, name) in self.categories.iter().enumerate() {
            drawing.text((frame.x(i as f64), bottom + 17.0), Anchor::Middle, Color::Faint, name);
        }
        drawing.text(((left + right) / 2.0, bottom + 36.0), Anchor::Middle, Color::Ink, &self.x_name);
        name_upwards(drawing, (top + bottom) / 2.0, &self.y_name);
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
    /// The map.
    pub fn draw(&self) -> Drawing {
        let cell_height = 26.0;
        let (count_rows, count_columns) = (self.rows.1.len(), self.columns.1.len());
        let mut drawing = titled(&self.title, TOP + cell_height * count_rows as f64 + BOTTOM);
        let finite = || self.values.iter().flatten().copied().filter(|value| value.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        let left = LEFT + 60.0;
        let cell_width = (WIDTH - RIGHT - left) / count_columns.max(1) as f64;
        for (r, (name, values)) in self.rows.1.iter().zip(&self.values).enumerate() {
            let y = TOP + cell_height * r as f64;
            drawing.text((left - 6.0, y + 17.0), Anchor::End, Color::Faint, name);
            for (c, value) in values.iter().take(count_columns).enumerate().filter(|(_, value)| value.is_finite()) {
                let x = left + cell_width * c as f64;
                let share = if high > low { (value - low) / (high - low) } else { 0.5 };
                let (width, height, opacity) = (cell_width - 1.0, cell_height - 1.0, 0.06 + 0.5 * share);
                drawing.shapes.push(Shape::Rectangle { x, y, width, height, color: Color::Heat, opacity });
                let label = format!("{value:.*}", self.digits);
                drawing.text((x + cell_width / 2.0, y + 17.0), Anchor::Middle, Color::Ink, &label);
            }
        }
        let bottom = TOP + cell_height * count_rows as f64;
        for (c, name) in self.columns.1.iter().enumerate() {
            drawing.text((left + cell_width * (c as f64 + 0.5), bottom + 16.0), Anchor::Middle, Color::Faint, name);
        }
        drawing.text(((left + WIDTH - RIGHT) / 2.0, bottom + 36.0), Anchor::Middle, Color::Ink, &self.columns.0);
        name_upwards(&mut drawing, (TOP + bottom) / 2.0, &self.rows.0);
        drawing
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

/// An empty drawing under its title.
fn titled(title: &str, height: f64) -> Drawing {
    let content = title.to_owned();
    let text = Text { x: LEFT, y: 18.0, anchor: Anchor::Start, color: Color::Ink, bold: true, upwards: false, content };
    Drawing { title: title.to_owned(), width: WIDTH, height, shapes: vec![Shape::Text(text)] }
}

/// The name of the vertical axis, around a height.
fn name_upwards(drawing: &mut Drawing, y: f64, name: &str) {
    let content = name.to_owned();
    let text = Text { x: 14.0, y, anchor: Anchor::Middle, color: Color::Ink, bold: false, upwards: true, content };
    drawing.shapes.push(Shape::Text(text));
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

fn draw_line(series: &Series, frame: &Frame, color: Color, drawing: &mut Drawing) {
    let place = |x: f64, y: f64| (frame.x(x), frame.y(y));
    let dashed = series.mark == Mark::Dashed;
    for run in runs(&series.points) {
        let points = &series.points[run.clone()];
        if let Some(bounds) =
            series.intervals.get(run).filter(|b| b.iter().all(|(l, h)| l.is_finite() && h.is_finite()))
        {
            let upper = points.iter().zip(bounds).map(|(p, b)| place(p.0, b.1));
            let lower = points.iter().zip(bounds).rev().map(|(p, b)| place(p.0, b.0));
            drawing.shapes.push(Shape::Area { points: upper.chain(lower).collect(), color, opacity: 0.15 });
        }
        let line = points.iter().map(|p| place(p.0, p.1)).collect();
        drawing.line(line, Stroke { color, width: 1.8, dashed });
        if (series.points.len() <= DOTTED && !dashed) || points.len() == 1 {
            points.iter().for_each(|p| dot(frame, *p, 2.6, color, drawing));
        }
    }
}

fn draw_points(series: &Series, frame: &Frame, color: Color, drawing: &mut Drawing) {
    for (i, point) in series.points.iter().enumerate().filter(|(_, p)| p.0.is_finite() && p.1.is_finite()) {
        whisker(frame, frame.x(point.0), series.intervals.get(i), color, drawing);
        dot(frame, *point, 3.0, color, drawing);
    }
}

/// Bars of the `which.0`-th of `which.1` series that share a place.
fn draw_bars(series: &Series, frame: &Frame, which: (usize, usize), color: Color, drawing: &mut Drawing) {
    let mut xs: Vec<f64> = series.points.iter().map(|p| p.0).filter(|x| x.is_finite()).collect();
    xs.sort_unstable_by(f64::total_cmp);
    let closest = xs.windows(2).map(|pair| pair[1] - pair[0]).filter(|d| *d > 0.0).fold(1.0, f64::min);
    let place = (frame.x(closest) - frame.x(0.0)) * 0.76;
    let width = place / which.1 as f64;
    for (i, point) in series.points.iter().enumerate().filter(|(_, p)| p.0.is_finite() && p.1.is_finite()) {
        let x = frame.x(point.0) - place / 2.0 + width * which.0 as f64;
        let (from, to) = (frame.y(0.0), frame.y(point.1));
        let (y, height) = (from.min(to), (from - to).abs());
        drawing.shapes.push(Shape::Rectangle { x, y, width: width.max(1.0) - 0.5, height, color, opacity: 0.8 });
        whisker(frame, x + width / 2.0, series.intervals.get(i), Color::Ink, drawing);
    }
}

/// An interval as a vertical line with caps.
fn whisker(frame: &Frame, x: f64, bounds: Option<&(f64, f64)>, color: Color, drawing: &mut Drawing) {
    let Some(&(low, high)) = bounds.filter(|(low, high)| low.is_finite() && high.is_finite()) else { return };
    let (low, high) = (frame.y(low), frame.y(high));
    let cap = |y: f64| vec![(x - 3.0, y), (x + 3.0, y)];
    let pieces = vec![cap(low), vec![(x, low), (x, high)], cap(high)];
    drawing.shapes.push(Shape::Lines { pieces, stroke: Stroke::thin(color) });
}

fn dot(frame: &Frame, point: (f64, f64), radius: f64, color: Color, drawing: &mut Drawing) {
    drawing.shapes.push(Shape::Dot { x: frame.x(point.0), y: frame.y(point.1), radius, color });
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
        assert_eq!(svg.matches("fill-opacity=\"0.800\"").count(), 4);
        // No colour of its own, nothing fetched.
        assert!(!svg.contains('#') && svg.matches("http").count() == 1, "{svg}");
    }

    #[test]
    fn a_file_of_its_own_needs_no_style_sheet() {
        let line = Series::new("a", Mark::Line, vec![(0.0, 0.0), (1.0, 1.0)]);
        let svg = Chart::new("t", "x", "y").with(line).draw().svg_file();
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
        let svg = map.draw().svg();
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("fill-opacity=\"0.060\"") && svg.contains("fill-opacity=\"0.560\""));
        assert!(svg.contains(">30.0</text>") && !svg.contains("NaN"));
    }
}
