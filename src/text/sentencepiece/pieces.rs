//! The piece table of a SentencePiece model.

use std::collections::HashMap;

use super::proto::{ModelProto, PieceKind};

/// SentencePiece refuses pieces of this many bytes.
const MAX_PIECE_BYTES: usize = 8000;

/// One piece.
#[derive(Debug)]
pub(super) struct Entry {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// Whether a piece of this kind can come from text: the others stand for what is outside it.
pub(super) fn is_usable(kind: PieceKind) -> bool {
    matches!(kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
}

/// All pieces by id and by text.
#[derive(Debug)]
pub(super) struct PieceTable {
    pub entries: Vec<Entry>,
    ids: HashMap<String, u32>,
    /// The piece of kind "unknown"; a model that falls back to bytes may lack one.
    pub unknown: Option<u32>,
}

impl PieceTable {
    /// The table of a model, checked; an error is a pair (expected, got).
    pub fn new(model: &ModelProto, byte_fallback: bool) -> Result<Self, (String, String)> {
        let mut table =
            PieceTable { entries: Vec::with_capacity(model.pieces.len()), ids: HashMap::new(), unknown: None };
        for (proto, id) in model.pieces.iter().zip(0u32..) {
            let wrong = |expected: &str| Err((expected.to_owned(), format!("{:?} as piece {id}", proto.piece())));
            let number = proto.kind.unwrap_or(PieceKind::Normal as i32);
            let Ok(kind) = PieceKind::try_from(number) else {
                return Err(("a piece type of 1 to 6".to_owned(), format!("{number} for piece {id}")));
            };
            let text = proto.piece().to_owned();
            // Some converters write a raw zero byte beside the byte piece <0x00>.
            if text == "\0" && (byte_fallback || kind == PieceKind::Unused) {
                table.entries.push(Entry { text, score: 0.0, kind: PieceKind::Unused });
                continue;
            }
            if text.is_empty() || text.len() >= MAX_PIECE_BYTES || text.contains('\0') {
                return wrong("a piece of 1 to 7999 bytes, none of them zero");
            }
            if !proto.score().is_finite() {
                return Err(("finite piece scores".to_owned(), format!("{} for piece {id}", proto.score())));
            }
            match kind {
                PieceKind::Unknown if table.unknown.replace(id).is_some() => return wrong("one unknown piece"),
                PieceKind::Byte if !byte_fallback => return wrong("no byte pieces without byte fallback"),
                PieceKind::Byte if byte_of(&text).is_none() => return wrong("a byte piece like <0x0A>"),
                _ => {}
            }
            if table.ids.insert(text.clone(), id).is_some() {
                return wrong("distinct pieces");
            }
            table.entries.push(Entry { text, score: proto.score(), kind });
        }
        table.check(byte_fallback)?;
        Ok(table)
    }

    fn check(&self, byte_fallback: bool) -> Result<(), (String, String)> {
        let error = |expected: &str, got: String| Err((expected.to_owned(), got));
        if byte_fallback {
            let bytes = self.entries.iter().filter(|entry| entry.kind == PieceKind::Byte).count();
            if bytes != 256 {
                return error("256 byte pieces for byte fallback", bytes.to_string());
            }
        } else if self.unknown.is_none() {
            return error("an unknown piece", "none".to_owned());
        }
        if !self.entries.iter().any(|entry| is_usable(entry.kind)) {
            return error("at least one normal piece", "none".to_owned());
        }
        Ok(())
    }

    /// The id of a piece.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The entry of a piece.
    pub fn get(&self, text: &str) -> Option<&Entry> {
        self.id(text).map(|id| &self.entries[id as usize])
    }
}

/// The byte that a piece like `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    if digits.len() != 2 || !digits.bytes().all(upper) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::super::proto::PieceProto;
    use super::*;

    fn piece(text: &str, score: f32, kind: i32) -> PieceProto {
        PieceProto { piece: Some(text.into()), score: Some(score), kind: Some(kind) }
    }

    fn table(pieces: Vec<PieceProto>, byte_fallback: bool) -> Result<PieceTable, (String, String)> {
        PieceTable::new(&ModelProto { pieces, ..Default::default() }, byte_fallback)
    }

    #[test]
    fn malformed_pieces_are_refused() {
        let long = "x".repeat(MAX_PIECE_BYTES);
        let cases = [
            (piece("a", 0.0, 7), "piece type", "7 for piece 2"),
            (piece("", 0.0, 1), "1 to 7999 bytes", "\"\" as piece 2"),
            (piece(&long, 0.0, 1), "1 to 7999 bytes", "as piece 2"),
            (piece("a\0", 0.0, 1), "1 to 7999 bytes", "as piece 2"),
            (piece("\0", 0.0, 1), "1 to 7999 bytes", "as piece 2"),
            (piece("a", f32::NAN, 1), "finite", "NaN for piece 2"),
            (piece("a", f32::INFINITY, 1), "finite", "inf for piece 2"),
            (piece("a", 0.0, 2), "one unknown piece", "\"a\" as piece 2"),
            (piece("<0x41>", 0.0, 6), "no byte pieces", "\"<0x41>\" as piece 2"),
            (piece("b", 0.0, 1), "distinct", "\"b\" as piece 2"),
        ];
        for (third, expected, got) in cases {
            let error = table(vec![piece("<unk>", 0.0, 2), piece("b", 0.0, 1), third], false).unwrap_err();
            assert!(error.0.contains(expected) && error.1.contains(got), "{error:?}");
        }
    }

    #[test]
    fn what_a_table_must_hold() {
        let bytes = |range: std::ops::Range<u32>| range.map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, 6));
        let letter = || std::iter::once(piece("b", 0.0, 1));
        let error = |pieces: Vec<PieceProto>, byte_fallback| table(pieces, byte_fallback).unwrap_err().0;
        assert_eq!(error(letter().collect(), false), "an unknown piece");
        assert_eq!(error(vec![piece("<unk>", 0.0, 2)], false), "at least one normal piece");
        assert_eq!(error(letter().chain(bytes(0..255)).collect(), true), "256 byte pieces for byte fallback");
        assert_eq!(error(letter().chain([piece("<0x1>", 0.0, 6)]).collect(), true), "a byte piece like <0x0A>");
        // With all bytes there need not be an unknown piece, and a raw zero byte beside <0x00> is left out.
        let whole = table(letter().chain(bytes(0..256)).chain([piece("\0", 0.0, 1)]).collect(), true).unwrap();
        assert_eq!(
            (whole.unknown, whole.entries.len(), whole.id("\0"), whole.id("<0x0A>")),
            (None, 258, None, Some(11))
        );
    }
}
