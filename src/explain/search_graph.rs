//! The search as a graph: a column per step, a row per live hypothesis, and below those what finished.

use std::fmt;

use super::{Escaped, shortened};
use crate::TextHypothesis;
use crate::decode::trace::{FinishedBeam, LiveBeam, TraceStep};
use crate::text::Tokenizer;

/// The steps of a search and where it led.
pub(super) struct SearchGraph<'a> {
    pub steps: &'a [TraceStep],
    pub tokenizer: &'a Tokenizer,
    pub hypotheses: &'a [TextHypothesis],
}

/// Size of a box, and the distance from one to the next.
const BOX: (usize, usize) = (92, 34);
const PITCH: (usize, usize) = (126, 44);
/// Room for the rows' names on the left and the steps' numbers on top.
const LEFT: usize = 70;
const TOP: usize = 26;
/// Characters of a token that fit into a box.
const TOKEN: usize = 12;

/// What became of a live hypothesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Gone,
    Kept,
    Best,
}

impl Fate {
    fn class(self) -> &'static str {
        match self {
            Fate::Gone => "gone",
            Fate::Kept => "kept",
            Fate::Best => "best",
        }
    }

    fn of_rank(rank: Option<usize>) -> Self {
        match rank {
            Some(0) => Fate::Best,
            Some(_) => Fate::Kept,
            None => Fate::Gone,
        }
    }
}

/// For each step, the start included, the fate of each live hypothesis.
fn fates(steps: &[TraceStep]) -> Vec<Vec<Fate>> {
    let mut fates = vec![vec![Fate::Gone]];
    fates.extend(steps.iter().map(|step| vec![Fate::Gone; step.live.len()]));
    // Backwards: by the time a step is looked at, everything that descends from it has been.
    for (i, step) in steps.iter().enumerate().rev() {
        let live = step.live.iter().zip(fates[i + 1].clone()).map(|(beam, fate)| (beam.parent, fate));
        let finished = step.finished.iter().map(|f| (f.parent, Fate::of_rank(f.rank)));
        for (parent, fate) in live.chain(finished).collect::<Vec<_>>() {
            if let Some(own) = fates[i].get_mut(parent) {
                *own = fate.max(*own);
            }
        }
    }
    fates
}

/// The top left corner of the box in this column and row; the start stands in column 0.
fn corner(column: usize, row: usize) -> (usize, usize) {
    (LEFT + column * PITCH.0, TOP + row * PITCH.1)
}

impl fmt::Display for SearchGraph<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beams = self.steps.iter().map(|step| step.live.len()).max().unwrap_or(0).max(1);
        let ends = self.steps.iter().map(|step| step.finished.len()).max().unwrap_or(0);
        let columns = self.steps.len() + 1;
        let (width, height) = (LEFT + columns * PITCH.0, TOP + (beams + ends) * PITCH.1 + 4);
        writeln!(f, "<svg role=\"img\" aria-label=\"beam search\" width=\"{width}\" height=\"{height}\">")?;
        for row in 0..beams {
            let y = corner(0, row).1 + BOX.1 / 2 + 4;
            writeln!(f, "<text class=\"axis\" x=\"0\" y=\"{y}\">beam {}</text>", row + 1)?;
        }
        if ends > 0 {
            let y = corner(0, beams).1;
            writeln!(f, "<text class=\"axis\" x=\"0\" y=\"{}\">finished</text>", y + BOX.1 / 2 + 4)?;
            let between = y - (PITCH.1 - BOX.1) / 2;
            writeln!(f, "<line class=\"rule\" x1=\"0\" x2=\"{width}\" y1=\"{between}\" y2=\"{between}\"/>")?;
        }
        let fates = fates(self.steps);
        // Lines of what was given up first: the others lie on top of them.
        for fate in [Fate::Gone, Fate::Kept, Fate::Best] {
            self.edges(f, &fates, beams, fate)?;
        }
        self.start(f, fates[0][0])?;
        for (i, step) in self.steps.iter().enumerate() {
            let x = corner(i + 1, 0).0 + BOX.0 / 2;
            writeln!(f, "<text class=\"axis\" x=\"{x}\" y=\"14\" text-anchor=\"middle\">step {}</text>", i + 1)?;
            for (row, beam) in step.live.iter().enumerate() {
                self.live(f, beam, (i + 1, row), fates[i + 1][row])?;
            }
            for (row, finished) in step.finished.iter().enumerate() {
                self.finished(f, finished, (i + 1, beams + row))?;
            }
        }
        writeln!(f, "</svg>")
    }
}

impl SearchGraph<'_> {
    fn edges(&self, f: &mut fmt::Formatter<'_>, fates: &[Vec<Fate>], beams: usize, only: Fate) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            let live = step.live.iter().enumerate().map(|(row, beam)| (beam.parent, row, fates[i + 1][row]));
            let finished = step.finished.iter().enumerate();
            let finished = finished.map(|(row, end)| (end.parent, beams + row, Fate::of_rank(end.rank)));
            for (parent, row, fate) in live.chain(finished).filter(|(.., fate)| *fate == only) {
                let (from, to) = (corner(i, parent), corner(i + 1, row));
                let (x1, y1, x2, y2) = (from.0 + BOX.0, from.1 + BOX.1 / 2, to.0, to.1 + BOX.1 / 2);
                let middle = (x1 + x2) / 2;
                let class = fate.class();
                writeln!(f, "<path class=\"edge {class}\" d=\"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}\"/>")?;
            }
        }
        Ok(())
    }

    fn start(&self, f: &mut fmt::Formatter<'_>, fate: Fate) -> fmt::Result {
        Node { class: fate.class().to_string(), token: "start", below: String::new(), tip: "start".into() }
            .draw(f, (0, 0))
    }

    fn live(&self, f: &mut fmt::Formatter<'_>, beam: &LiveBeam, at: (usize, usize), fate: Fate) -> fmt::Result {
        let token = self.tokenizer.target_piece(beam.token);
        let (own, sum) = (beam.log_prob, beam.search_log_prob);
        let tip = format!("{token} (id {}): log-probability {own:.4}, sum {sum:.4}", beam.token);
        Node { class: fate.class().to_string(), token, below: format!("{sum:.2}"), tip }.draw(f, at)
    }

    fn finished(&self, f: &mut fmt::Formatter<'_>, end: &FinishedBeam, at: (usize, usize)) -> fmt::Result {
        let FinishedBeam { score, search_log_prob: sum, .. } = end;
        let (place, text) = match end.rank {
            Some(rank) => (format!("{}.", rank + 1), self.hypotheses.get(rank).map_or("", |h| h.text.as_str())),
            None => ("outranked".to_string(), ""),
        };
        let closed = match end.eos_log_prob {
            Some(own) => format!("end of sentence, log-probability {own:.4}"),
            None => "cut without end of sentence".to_string(),
        };
        let tip = format!("{text} ({closed}; sum {sum:.4}, score {score:.4})");
        let class = format!("end {}", Fate::of_rank(end.rank).class());
        Node { class, token: &place, below: format!("score {score:.3}"), tip }.draw(f, at)
    }
}

/// A box with a token, a number below it, and more to read under the pointer.
struct Node<'a> {
    class: String,
    token: &'a str,
    below: String,
    tip: String,
}

impl Node<'_> {
    fn draw(&self, f: &mut fmt::Formatter<'_>, (column, row): (usize, usize)) -> fmt::Result {
        let ((x, y), (width, height)) = (corner(column, row), BOX);
        let (middle, radius) = (x + width / 2, if self.class.starts_with("end") { height / 2 } else { 5 });
        let Node { class, token, below, tip } = self;
        write!(f, "<g class=\"node {class}\"><title>{}</title>", Escaped(tip))?;
        write!(f, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\"/>")?;
        let token_y = if below.is_empty() { y + height / 2 + 4 } else { y + 15 };
        let token = shortened(token, TOKEN);
        write!(
            f,
            "<text class=\"token\" x=\"{middle}\" y=\"{token_y}\" text-anchor=\"middle\">{}</text>",
            Escaped(&token)
        )?;
        let below_y = y + 28;
        writeln!(f, "<text class=\"small\" x=\"{middle}\" y=\"{below_y}\" text-anchor=\"middle\">{below}</text></g>")
    }
}
