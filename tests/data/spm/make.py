#!/usr/bin/env python3
"""Trains the small SentencePiece models of this folder and records what the SentencePiece library makes of odd text.

Run it here with Python packages sentencepiece (0.2.3 was used) and protobuf. Each <name>.spm has a <name>.jsonl: lines with
`text`, its `pieces` and their `decoded` text, and lines with odd `pieces` and their `decoded` text alone. Arguments name the kinds of
model to make; without any all are made.
"""

import json
import pathlib
import random
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

HERE = pathlib.Path(__file__).parent
CORPUS = [json.loads(line)["text"] for line in open(HERE.parent / "own" / "tokens.jsonl", encoding="utf-8")][-240:]

# Source and target code points: several for one, one for several, a prefix of another rule, a space, nothing, U+2581.
RULES = "\n".join(["61 62\t78 20 79", "61 62 63\t7A", "41\t", "64 65 72\t20 64 61", "22\t20", "2581\t20", "FB01\t66 69", ""])
# "12345" can be split into symbols in several ways.
SYMBOLS = ["<sep>", "x y", "foo\u2581bar", "th", "the", "\ufb01", "A", "1234", "5", "1", "2", "345"]

MODELS = {
    "rules": dict(normalization_rule_tsv="rules.tsv"),
    "bytes": dict(normalization_rule_name="identity", byte_fallback=True, vocab_size=560),
    "symbols": dict(normalization_rule_name="identity", user_defined_symbols=SYMBOLS, unk_surface="<<?>>"),
    "spaces": dict(normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True),
    "bare": dict(normalization_rule_name="identity", add_dummy_prefix=False, split_digits=True, split_by_whitespace=False),
    "suffix": dict(normalization_rule_name="identity", treat_whitespace_as_suffix=True, control_symbols=["<ctl>"]),
    "unused": dict(normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False),
    "escape": dict(normalization_rule_name="identity"),
}
DENORMALIZED = "rules"

ODD = (
    ["\0", "\x01", "\t", "\n", "\r", "\x7f", "\x85", "\xa0", "\u2581", "\u2581\u2581", " ", "  ", "\u3000", "\u200b", "\u200d"]
    + ["\ufeff", "\u2028", "\ufffd", "\ufb01", "\u0301", "e\u0301", "\u1e9e", "\u00bd", "\u2026", "\u00a8", "\uff21", "\uff76\uff9e"]
    + ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u65e5\u672c", "\ud55c", "\u202e", "\ue000"]
    + ["\U0010ffff", "<unk>", "</s>", "<s>", "<ctl>", "<0x41>", "<sep>", "x y", "x  y", "foo\u2581bar", "foo bar", "ab", "abc"]
    + ["der", "the", "thin", '"', "A", "\u2047", "12", "345", "12345", "xxxxxxxx", ">>fra<<"]
)
BYTES = ["<0x41>", "<0xE2>", "<0x96>", "<0x81>", "<0xFF>", "<0x20>", "<0xe2>"]
# Byte pieces that spell a character, half of one, a surrogate, and U+2581.
SPELT = [["<0x41>"], ["<0xE2>", "<0x96>"], ["<0xF0>", "<0x9F>", "<0x98>", "e"], ["<0xED>", "<0xA0>", "<0x80>"]]
SPELT += [["<0xE2>", "<0x96>", "<0x81>", "<0x41>"], ["<0xE2>", "<0x96>", "\u2581", "<0x81>"], ["\u2581", "<0x20>", "\u2581a"]]
PIECES = ["\u2581", "\u2581\u2581", "<unk>", "</s>", "<s>", "<ctl>", "\u2581zzq", "\u65e5", "\u2581a\u2581b", "", "A"] + BYTES


def odd_text(rng):
    if rng.random() < 0.05:
        return rng.choice(ODD) * rng.choice([2, 5, 40])
    parts = []
    for _ in range(rng.choice([0, 1, 2, 3, 5, 8])):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(rng.choice(CORPUS).split() or [""]))
        elif kind < 0.85:
            parts.append(rng.choice(ODD))
        else:
            parts.append(chr(rng.randrange(0x20, 0x250)))
        if rng.random() < 0.4:
            parts.append(rng.choice([" ", "  "]))
    return "".join(parts)


def odd_pieces(rng, table):
    count = rng.choice([0, 1, 2, 4, 8])
    return [rng.choice(table) if rng.random() < 0.5 else rng.choice(PIECES) for _ in range(count)]


def edit(name, path):
    """Settings that the trainer does not offer."""
    model = pb.ModelProto()
    model.ParseFromString(path.read_bytes())
    if name == "unused":
        normal = [p for p in model.pieces if p.type == pb.ModelProto.SentencePiece.NORMAL]
        for piece in normal[::3]:
            piece.type = pb.ModelProto.SentencePiece.UNUSED
    if name == "symbols":
        # Symbols are never merged, even where the result would be a piece.
        model.pieces.add(piece="thi", score=1.0)
    if name == "escape":
        model.normalizer_spec.escape_whitespaces = False
    if name == "suffix":
        # Without rules it is not applied, whatever else it says.
        model.denormalizer_spec.add_dummy_prefix = True
    if name == DENORMALIZED:
        model.denormalizer_spec.CopyFrom(model.normalizer_spec)
        model.denormalizer_spec.add_dummy_prefix = False
        model.denormalizer_spec.escape_whitespaces = False
    for field in ("input", "model_prefix"):
        model.trainer_spec.ClearField(field)
    path.write_bytes(model.SerializeToString())


def main():
    rules = HERE / "rules.tsv"
    rules.write_text(RULES, encoding="utf-8")
    for kind in sys.argv[1:] or ("unigram", "bpe", "char", "word"):
        for number, (name, settings) in enumerate(MODELS.items()):
            stem = HERE / f"{kind}-{name}"
            options = {"vocab_size": 300, "hard_vocab_limit": False, **settings}
            if "normalization_rule_tsv" in options:
                options["normalization_rule_tsv"] = str(rules)
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS), model_prefix=str(stem), model_type=kind, minloglevel=2, **options
            )
            stem.with_suffix(".vocab").unlink()
            model = stem.with_suffix(".model").rename(stem.with_suffix(".spm"))
            edit(name, model)
            processor = sentencepiece.SentencePieceProcessor(str(model))
            table = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
            rng = random.Random(number)
            with open(stem.with_suffix(".jsonl"), "w", encoding="utf-8") as out:
                for _ in range(80):
                    text = odd_text(rng)
                    pieces = processor.encode(text, out_type=str)
                    decoded = processor.decode(pieces) if pieces else ""
                    print(json.dumps(dict(text=text, pieces=pieces, decoded=decoded)), file=out)
                for pieces in [odd_pieces(rng, table) for _ in range(20)] + SPELT:
                    decoded = processor.decode(pieces) if pieces else ""
                    print(json.dumps(dict(pieces=pieces, decoded=decoded)), file=out)
    rules.unlink()


main()
