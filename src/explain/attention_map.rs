//! The attention of one translation: a square per pair of tokens, the darker the more weight.

use std::fmt;

use super::{Escaped, shortened};

/// Weights `[target, source]` and the tokens of both sides.
pub(super) struct AttentionMap<'a> {
    pub source: &'a [String],
    pub target: &'a [String],
    pub weights: &'a [Vec<f32>],
}

/// Side of a square.
const CELL: usize = 26;
/// Room for the target's tokens on the left, and for the source's, written upwards, on top.
const LEFT: usize = 120;
const TOP: usize = 96;
/// Characters of a token that fit.
const TOKEN: usize = 14;

impl fmt::Display for AttentionMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (across, down) = (self.source.len() * CELL, self.target.len() * CELL);
        // The last source token leans to the right.
        let (width, height) = (LEFT + across + TOP, TOP + down + 4);
        writeln!(f, "<svg role=\"img\" aria-label=\"attention\" width=\"{width}\" height=\"{height}\">")?;
        for (i, token) in self.source.iter().enumerate() {
            let x = LEFT + i * CELL + CELL / 2;
            let (y, text) = (TOP - 8, shortened(token, TOKEN));
            writeln!(f, "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-50 {x} {y})\">{}</text>", Escaped(&text))?;
        }
        for (j, (token, weights)) in self.target.iter().zip(self.weights).enumerate() {
            let y = TOP + j * CELL;
            let (x, base, text) = (LEFT - 8, y + CELL / 2 + 4, shortened(token, TOKEN));
            writeln!(f, "<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{}</text>", Escaped(&text))?;
            for (i, (weight, source)) in weights.iter().zip(self.source).enumerate() {
                let x = LEFT + i * CELL;
                write!(f, "<rect class=\"cell\" x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" ")?;
                let pair = format!("{token} to {source}: {weight:.4}");
                writeln!(f, "fill-opacity=\"{weight:.3}\"><title>{}</title></rect>", Escaped(&pair))?;
            }
        }
        writeln!(f, "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{across}\" height=\"{down}\"/>\n</svg>")
    }
}
