"""Writes expected.json, what sacrebleu says about the texts here with its defaults, and settings.json, what it says with other
tokenizers, word n-grams and TER.

    pip install sacrebleu==2.6.0 sentencepiece==0.2.3 regex && python make.py

own.reference.de are translations of our own English lines with beam 4, own.beam1.de the same with beam 1.
"""

import json
import pathlib
import random
import sys

import numpy as np
import regex
import sacrebleu
import sentencepiece
from sacrebleu import significance
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.lib_ter import translation_edit_rate
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_spm import TokenizerSPM
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

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


# Texts for the other tokenizers: scripts, numbers that are no digits, symbols, runs of punctuation, marks that combine.
ODD = [
    "我爱北京天安门。我今年25岁，住在3.5楼!", "中文和English混排：A,B、C——“引号”‘单’…", "ｆｕｌｌ　ｗｉｄｔｈ，１２３．４５！", "\U00020000\U0002a6d6 \U0002f800 扩展",
    "「猫」は、３．５kgです。カタカナ・ｶﾀｶﾅ ー ゝ々〆", "안녕하세요, 세계! 3,000원", "สวัสดีชาวโลก ๑๒๓.๔", "नमस्ते दुनिया। १२,३४५", "مرحبا، كيف حالك؟ ١٢٣٫٤",
    "Ⅷ. Kapitel, ½,¾ und x²,y³ ①.②", "5%–10% ±3 €1,50 $2.30 £4 ¥5 ₿6 20€.", "a+b=c; x≤y≥z ∞ √2 ∑ ∫ ≈π", "«¿Qué?» „Ja“ ‚nein‘ ‹so› ¡Hola!",
    "... ?!?! --- ,,, ;;; '''' \"\" ((())) [[]] {{}} <<>> //\\\\ ||", "a.b,c;d:e!f?g(h)i[j]k{l}m", "1.2,3;4:5!6?7(8)9[0]1{2}3",
    "3.,4 .5, 6-7 -8 9- 10-te A-9 9-A", "cafe\u0301 n\u0303 a\u0308\u0323 \u0301x z\u0335!", "👍🏽 👩‍👩‍👧‍👦 🇩🇪 1️⃣ ❤️! ☃.☂",
    "&quot;x&quot; &amp;amp; &lt;b&gt; &#39; &nbsp;", "<skipped> a<skipped>b", "zwei  Leer\u00a0zeichen\u3000hier\u2009da\u200bso",
    "He's she's 's it's. the dogs' 's", "It's 's.\n-trennung\nneue Zeile", "STRASSE Straße ΣΊΣΥΦΟΣ İSTANBUL ǅ ﬁ", "\u0000 \u0007 \u007f \u0085 x",
    "一二三，四五六。七八九！", "「」『』【】〔〕〖〗〜・･｡｢｣､", "．，？：；！＂（）", "㊀㋿㌀㏿豈舘︰﹏⼀⿕⺀⻳㇀㇣ꀀ㐀䶵䶿鿿", "あ", "ァア", "ｱ", "ああ いい", "㈱", "ー",
    "hello,world.foo", "U.S.A. e.g. i.e. 3.14.15", "user@example.com https://example.com/a?b=c&d#e",
]

TOKENIZERS = ["13a", "intl", "zh", "char", "none", "spm"]
SPM = HERE.parent / "spm" / "unigram-rules.spm"

TER_SETTINGS = [
    {},
    {"normalized": True},
    {"no_punct": True},
    {"asian_support": True},
    {"normalized": True, "asian_support": True},
    {"no_punct": True, "asian_support": True, "case_sensitive": True},
    {"normalized": True, "no_punct": True, "asian_support": True, "case_sensitive": True},
    {"case_sensitive": True},
]


def bleu(name, **settings):
    """sacrebleu's BLEU; its tokenizer spm with a model of ours in place of the one that it downloads."""
    metric = BLEU(tokenize="none" if name == "spm" else name, force=True, **settings)
    if name == "spm":
        metric.tokenizer = TokenizerSPM.__new__(TokenizerSPM)
        metric.tokenizer.name = "spm"
        metric.tokenizer.sp = sentencepiece.SentencePieceProcessor(str(SPM))
    return metric


def ranges(is_in):
    """Code points as pairs of first and last; surrogates left out."""
    found = []
    for c in range(sys.maxunicode + 1):
        if not 0xD800 <= c < 0xE000 and is_in(chr(c)):
            if found and found[-1][1] == c - 1:
                found[-1][1] = c
            else:
                found.append([c, c])
    return found


def scrambled(count):
    """Pairs of word sequences that drive the search for moves to its limits: permutations, repetitions, very different lengths."""
    rng = random.Random(2)
    pairs = []
    for i in range(count):
        kinds = rng.choice([2, 5, 20, 200])
        words = [f"w{rng.randrange(kinds)}" for _ in range(rng.choice([3, 8, 15, 30, 60, 130]))]
        other = list(words)
        for _ in range(rng.randrange(6)):
            start, length = rng.randrange(len(other)), rng.randrange(1, 14)
            phrase = other[start:start + length]
            del other[start:start + length]
            at = rng.randrange(len(other) + 1)
            other[at:at] = phrase
        for _ in range(rng.randrange(5)):
            other[rng.randrange(len(other))] = "x"
        if i % 7 == 0:
            other = other[:rng.randrange(1, 4)]
        if i % 7 == 1:
            words = words[:rng.randrange(1, 4)]
        if i % 11 == 0:
            rng.shuffle(other)
        pairs.append((" ".join(other), " ".join(words)))
    # Rotations up to and past the beam of the edit distance; phrases too long to be moved.
    for length in (60, 80):
        words = [f"w{i}" for i in range(length)]
        for by in range(23, 28):
            pairs.append((" ".join(words), " ".join(words[by:] + words[:by])))
            pairs.append((" ".join(words[by:] + words[:by]), " ".join(words)))
            pairs.append((" ".join(words), " ".join(["x"] * by + words)))
            pairs.append((" ".join(["x"] * by + words), " ".join(words)))
            pairs.append((" ".join(["x"] * by + words[:-by]), " ".join(words)))
            pairs.append((" ".join(words), " ".join(["x"] * by + words[:-by])))
    return pairs


def scores(hypotheses, references):
    """Corpus scores under every setting."""
    refs = streams(references)
    return {
        "bleu": {name: bleu(name).corpus_score(hypotheses, refs).score for name in TOKENIZERS},
        "chrf": [CHRF(word_order=n).corpus_score(hypotheses, refs).score for n in range(3)],
        "ter": [TER(**settings).corpus_score(hypotheses, refs).score for settings in TER_SETTINGS],
    }


def signatures(hypotheses, references):
    metrics = [bleu(name) for name in TOKENIZERS if name != "spm"] + [CHRF(word_order=n) for n in range(3)]
    metrics += [TER(**settings) for settings in TER_SETTINGS]
    found = []
    for metric in metrics:
        metric.corpus_score(hypotheses, streams(references))
        found.append(str(metric.get_signature()))
    return found


def settings(beam1, own):
    texts = noise(120) + ODD + sorted({t for h, r in SENTENCES for t in [h, *r]})
    odd_pairs = [(a, [b]) for a, b in zip(ODD, ODD[1:] + ODD[:1])] + [(a, [a[: len(a) // 2], a[1:]]) for a in ODD]
    pairs = SENTENCES + odd_pairs
    bare, parted = TER(no_punct=True, asian_support=True), TER(normalized=True, asian_support=True)
    return {
        "sacrebleu": sacrebleu.__version__,
        "number": ranges(regex.compile(r"\p{N}").match),
        "punctuation": ranges(regex.compile(r"\p{P}").match),
        "symbol": ranges(regex.compile(r"\p{S}").match),
        "chinese": ranges(TokenizerZh._is_chinese_char),
        "ter_removed": ranges(lambda c: bare._preprocess_segment(f"a{c}a") == "aa"),
        "ter_parted": ranges(lambda c: len(parted._preprocess_segment(f"a{c}a").split()) == 3),
        "tokens": {name: [[t, bleu(name).tokenizer(t.rstrip()).split()] for t in texts] for name in TOKENIZERS},
        "ter_settings": TER_SETTINGS,
        "ter_words": [[[t, TER(**s)._preprocess_segment(t).split()] for t in texts] for s in TER_SETTINGS],
        "edits": [[h, r, translation_edit_rate(h.split(), r.split())[0]] for h, r in scrambled(150)],
        "sentences": [{"hypothesis": h, "references": r, **scores([h], [r])} for h, r in pairs],
        "corpora": [{"hypotheses": [h for h, _ in pairs], "references": [r for _, r in pairs],
                     **scores([h for h, _ in pairs], [r for _, r in pairs])} for pairs in [*CORPORA.values(), odd_pairs]],
        "own": scores(beam1, [[r] for r in own]),
        "signatures": signatures(beam1, [[r] for r in own]),
    }


def write(name, value):
    with open(HERE / name, "w", encoding="utf-8") as out:
        json.dump(value, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


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
    write("expected.json", expected)
    write("settings.json", settings(beam1, own))


if __name__ == "__main__":
    main()
