"""Writes expected.json: what sacrebleu says about the texts here.

    pip install sacrebleu==2.6.0 && python make.py

own.reference.de are translations of our own English lines with beam 4, own.beam1.de the same with beam 1.
"""

import json
import pathlib
import random
import sys

import numpy as np
import sacrebleu
from sacrebleu import significance
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

HERE = pathlib.Path(__file__).parent

SENTENCES = [
    # empty, blank, one token, nothing in common, shorter and longer than the reference
    ("", ["A dog runs."]),
    ("A dog runs.", [""]),
    ("", [""]),
    (" \t\u3000", ["\u00a0 "]),
    ("Hund", ["Hund"]),
    ("Hund", ["Katze"]),
    ("Hund", ["Ein Hund läuft durch den Schnee."]),
    ("ein Hund", ["ein Hund"]),
    ("ein kleiner Hund", ["ein kleiner Hund"]),
    ("ein kleiner brauner Hund", ["ein kleiner brauner Hund"]),
    ("xyz xyz", ["abc def ghi"]),
    ("der der der der der der der", ["der Hund jagt der Katze nach"]),
    ("Ein Mann fährt.", ["Ein Mann fährt auf einem Fahrrad durch die Stadt."]),
    ("Ein Mann fährt auf einem roten Fahrrad durch die Stadt.", ["Ein Mann fährt."]),
    ("Zwei Hunde laufen im Schnee.", ["Zwei Hunde laufen durch den Schnee."]),
    # punctuation, emoji, CJK, combining marks, right-to-left, joiners, the largest code point, NUL
    ("„Guten Tag“, sagte sie – und ging…", ["„Guten Morgen“, sagte sie — und ging…"]),
    ("Prima 👍🏽👍🏽 gemacht 😀!", ["Prima 👍🏽 gemacht 😀😀!"]),
    ("👩‍👩‍👧 im Park", ["👩‍👧 im Park"]),
    ("我喜欢吃苹果。", ["我喜欢吃香蕉。"]),
    ("猫が好きです", ["犬が好きです。"]),
    ("für u\u0308ber cafe\u0301", ["fu\u0308r über café"]),
    ("שלום עולם", ["שלום לכולם"]),
    ("a\u200bb \ufeffc", ["ab c"]),
    ("\U0010ffff\U0010fffe a", ["\U0010ffff\U0010fffe b"]),
    ("\0\0a", ["\0a"]),
    ("١٢٣.٤ ½.5", ["١٢٣.٥ ½.5"]),
    # white space that Python splits at: controls 1c to 1f, no-break, ideographic, line separators
    ("ein\x1cHund\x1dbellt\x1elaut\x1fhier\x85so\u2028ja\u2029da", ["ein Hund bellt laut hier so ja da"]),
    ("ein\u00a0Hund\u3000bellt", ["ein Hund bellt"]),
    ("ein Hund \n", ["ein\nHund"]),
    ("Wort-\ntrennung hier", ["Worttrennung hier"]),
    ("Ende-\n", ["Ende-"]),
    # entities, among them escaped twice, and <skipped>
    ("&quot;Ja&quot; &amp; Nein &lt;b&gt;", ['"Ja" & Nein <b>']),
    ("&amp;lt; &amp;quot; &apos; &unknown;", ["< &quot; ' &unknown;"]),
    ("<skipped> Ein Hund", ["Ein <skipped>Hund"]),
    ("<skip<skipped>ped>", ["<skipped>"]),
    # numbers, dashes, runs of periods and commas
    ("Es kostet 1,234.56 Euro.", ["Es kostet 1.234,56 Euro."]),
    ("1.000.000, 3,5 und 7.", ["1.000.000 , 3,5 und 7 ."]),
    (".5 5. 5.a a.5 ,,, ... 1..2 3,,4", [". 5 5 . 5 . a a . 5 , , , . . . 1 . . 2 3 , , 4"]),
    ("1990-2000 A-B 3-- -4", ["1990 - 2000 A-B 3 - - - 4"]),
    ("Das ist's (ja) [so] {gut}~`^_|\\/", ["Das ist 's ( ja ) [ so ] { gut } ~ ` ^ _ | \\ /"]),
    # several references: clipping against the best count, the closest length, ties of both
    ("der Hund der Katze", ["der Hund", "der Katze der Maus"]),
    ("a b c", ["a b", "a b c d"]),
    ("a b c d", ["x y z", "a b c d", "a b"]),
    ("Zwei Hunde laufen.", ["Zwei Hunde rennen.", "Zwei Tiere laufen.", ""]),
    ("", ["a", "b c"]),
    ("ab", ["ba", "ab"]),
]

CORPORA = {
    "short lines only": [("ein Hund", ["ein Hund"]), ("Ja.", ["Ja."])],
    "no match": [("a b c d e", ["v w x y z"]), ("f", ["u"])],
    "no match above bigrams": [("a b x c d y", ["a b z c d w"]), ("e f", ["e f g h"])],
    "empty lines among others": [("", ["ein Hund bellt laut"]), ("ein Hund bellt sehr laut", [""]),
                                 ("ein Hund bellt laut", ["ein Hund bellt laut heute"])],
    "all empty": [("", [""]), ("", ["x"])],
    "one to three references": [("der Hund jagt die Katze .", ["der Hund jagt eine Katze ."]),
                                ("a b c d e", ["a b c d", "b c d e f", "a b"]),
                                ("Zwei Hunde laufen.", ["Zwei Hunde rennen.", "Zwei Tiere laufen."])],
    "every sentence": SENTENCES,
}


def streams(references):
    """References per sentence to sacrebleu's reference streams, None where a sentence has fewer."""
    most = max(map(len, references))
    return [[r[i] if i < len(r) else None for r in references] for i in range(most)]


def corpus(hypotheses, references):
    bleu = BLEU(force=True).corpus_score(hypotheses, streams(references))
    return {
        "bleu": bleu.score,
        "precisions": bleu.precisions,
        "brevity_penalty": bleu.bp,
        "hypothesis_tokens": bleu.sys_len,
        "reference_tokens": bleu.ref_len,
        "length_ratio": bleu.ratio,
        "chrf": CHRF().corpus_score(hypotheses, streams(references)).score,
    }


def noise(count):
    """Random strings over the characters that the tokeniser treats specially."""
    rng = random.Random(1)
    pieces = list(" .,-'09a&;<>/\n\t\x1f\u00a0é中😀{`~@[:") + ["..", "-\n", "&amp;", "&lt;", "quot;", "<skipped>"]
    return ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 14))) for _ in range(count)]


def tokens(text):
    return Tokenizer13a()(text.rstrip())


def paired(references, baseline, system, resamples, seed):
    """The paired test by sacrebleu itself, and the draws and scores it went through."""
    draws = np.random.default_rng(seed).choice(len(baseline), size=(resamples, len(baseline)), replace=True)
    result = {"resamples": resamples, "sentences": len(baseline), "draws": draws.tolist()}
    for name, metric in {"bleu": BLEU(force=True), "chrf": CHRF()}.items():
        stats = [metric._extract_corpus_statistics(s, [references]) for s in (baseline, system)]
        base = significance.Result(metric._aggregate_and_compute(stats[0]).score)
        _, tested = significance._paired_bs_test(
            {name: (stats[0], base)}, "system", system, [references], {name: metric}, resamples, seed=seed)
        # The test sums in float32; the scores here are of exact integer sums.
        scores = [[metric._aggregate_and_compute([s[i] for i in draw]).score for draw in draws] for s in stats]
        result[name] = {
            "baseline_scores": scores[0],
            "system_scores": scores[1],
            "p_value": tested[name].p_value,
            "system_mean": float(tested[name].mean),
            "system_half_width": float(tested[name].ci),
        }
    return result


def main():
    own = (HERE / "own.reference.de").read_text(encoding="utf-8").splitlines()
    beam1 = (HERE / "own.beam1.de").read_text(encoding="utf-8").splitlines()
    english = (HERE.parent / "own" / "own.en").read_text(encoding="utf-8").splitlines()
    # A system between the two, which changes a few lines for the better and one for the worse.
    mixed = [r if i % 5 == 0 else h for i, (h, r) in enumerate(zip(beam1, own))]
    mixed[1] = mixed[1].split()[0]
    texts = noise(250) + sorted({t for h, r in SENTENCES for t in [h, *r]})
    expected = {
        "sacrebleu": sacrebleu.__version__,
        "whitespace": [c for c in range(sys.maxunicode + 1) if chr(c).isspace()],
        "tokens": [[t, tokens(t)] for t in texts],
        "sentences": [{"hypothesis": h, "references": r, "bleu": sacrebleu.sentence_bleu(h, r).score,
                       "chrf": sacrebleu.sentence_chrf(h, r).score} for h, r in SENTENCES],
        "corpora": [{"name": name, "hypotheses": [h for h, _ in pairs], "references": [r for _, r in pairs],
                     **corpus([h for h, _ in pairs], [r for _, r in pairs])} for name, pairs in CORPORA.items()],
        "own": {
            "corpus": corpus(beam1, [[r] for r in own]),
            "with_source_as_second_reference": corpus(beam1, [[r, s] for r, s in zip(own, english)]),
            "sentence_bleu": [sacrebleu.sentence_bleu(h, [r]).score for h, r in zip(beam1, own)],
            "sentence_chrf": [sacrebleu.sentence_chrf(h, [r]).score for h, r in zip(beam1, own)],
        },
        "paired": {"system": mixed[:40], **paired(own[:40], beam1[:40], mixed[:40], resamples=80, seed=12345)},
    }
    with open(HERE / "expected.json", "w", encoding="utf-8") as out:
        json.dump(expected, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


if __name__ == "__main__":
    main()
