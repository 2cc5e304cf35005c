#!/usr/bin/env python3
"""Compares `beamfuse eval` with sacrebleu, live, on random corpora under every setting of its metrics.

    pip install sacrebleu==2.6.0 sentencepiece==0.2.3
    python benches/peers/metrics.py --beamfuse target/release/beamfuse --corpora 40 [--seed 1] [--spm-model FILE]

A corpus is 1 to 12 lines with 1 to 3 references each, of random pieces: words, numbers, entities, marks, white space, emoji, combining
marks, Chinese, Japanese, Korean, Arabic and Indic text, and code points from anywhere; hypotheses are their references with words
swapped, moved, dropped and repeated. Prints each difference above 1e-6, and how many scores were compared; exit code 1 if any differ.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import sacrebleu
import sentencepiece
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.tokenizers.tokenizer_spm import TokenizerSPM

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "der Hund läuft durch den Schnee , und die Katze schläft . The cat's dog runs fast ! Ist's gut ?".split()
ODD = ["1,234.5", "3.", ".5", "5-6", "-", "--", "...", "?!", "«", "»", "„", "“", "’s", "'s", "&quot;", "&amp;", "&lt;b&gt;", "&amp;lt;", "<skipped>",
       "%", "€", "½", "Ⅷ", "x²", "±", "U.S.A.", "a.b,c", "(", ")", "(x)", "[y]", "我爱北京", "天安门。", "猫が", "カタカナ", "ｶﾅ", "，", "！", "．", "（", "）", "・",
       "안녕", "مرحبا،", "؟", "नमस्ते।", "१२", "e\u0301", "a\u0308\u0323", "👍🏽", "👩‍👧", "1️⃣", "\u00a0", "\u3000", "\u200b", "\u2009", "\x1c", "ǅ", "ΣΑΣ", "İ", "ß"]
TOKENIZERS = ["13a", "intl", "zh", "char", "none", "spm"]
TER_FLAGS = ["normalized", "no_punct", "asian_support", "case_sensitive"]


def text(rng):
    parts = []
    for _ in range(rng.choice([0, 1, 2, 4, 8, 15, 40])):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.97:
            parts.append(rng.choice(ODD))
        else:
            code = rng.randrange(0x20, 0x3000) if rng.random() < 0.8 else rng.randrange(0x3000, 0x110000)
            # A surrogate is no character; characters newer than either side's tables differ by nature.
            parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "x")
    return rng.choice([" ", " ", " ", ""]).join(parts)


def changed(rng, line):
    words = line.split(" ")
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(words))
        change = rng.random()
        if change < 0.3:
            words[at] = rng.choice(WORDS)
        elif change < 0.5:
            words.insert(at, words[rng.randrange(len(words))])
        elif change < 0.7 and len(words) > 1:
            del words[at]
        else:
            phrase = words[at:at + rng.randrange(1, 5)]
            del words[at:at + len(phrase)]
            to = rng.randrange(len(words) + 1)
            words[to:to] = phrase
    return " ".join(words)


def bleu(name, model):
    metric = BLEU(tokenize="none" if name == "spm" else name, force=True)
    if name == "spm":
        metric.tokenizer = TokenizerSPM.__new__(TokenizerSPM)
        metric.tokenizer.name = "spm"
        metric.tokenizer.sp = sentencepiece.SentencePieceProcessor(str(model))
    return metric


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--beamfuse", default=ROOT / "target/release/beamfuse")
    parser.add_argument("--corpora", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spm-model", default=ROOT / "tests/data/spm/unigram-rules.spm")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    compared = differ = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for number in range(arguments.corpora):
            lines = rng.randrange(1, 13)
            clean = lambda line: line.replace("\n", " ").replace("\r", " ")
            references = [[clean(text(rng)) for _ in range(lines)] for _ in range(rng.randrange(1, 4))]
            hypotheses = [clean(changed(rng, rng.choice(references)[i])) for i in range(lines)]
            files = [scratch / f"r{i}" for i in range(len(references))] + [scratch / "h"]
            for path, content in zip(files, references + [hypotheses]):
                path.write_bytes("".join(line + "\n" for line in content).encode("utf-8"))
            base = [arguments.beamfuse, "eval", "--hypotheses", files[-1], "--format", "json", "--resamples", "1"]
            base += [part for path in files[:-1] for part in ("--reference", path)]
            for name in TOKENIZERS:
                words = rng.randrange(3)
                flags = {flag: rng.random() < 0.5 for flag in TER_FLAGS}
                command = base + ["--tokenize", name, "--chrf-word-order", str(words), "--ter"]
                command += [f"--ter-{flag.replace('_', '-')}" for flag in TER_FLAGS if flags[flag]]
                command += ["--spm-model", arguments.spm_model] if name == "spm" else []
                report = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)
                theirs = {
                    "bleu": bleu(name, arguments.spm_model).corpus_score(hypotheses, references).score,
                    "chrf2": CHRF(word_order=words).corpus_score(hypotheses, references).score,
                    "ter": TER(**flags).corpus_score(hypotheses, references).score,
                }
                for field, score in theirs.items():
                    compared += 1
                    if abs(report[field]["score"] - score) > 1e-6:
                        differ += 1
                        print(f"corpus {number}: {report[field]['signature']}: sacrebleu {score}, beamfuse {report[field]['score']}")
                        print(json.dumps({"hypotheses": hypotheses, "references": references}))
    print(f"sacrebleu {sacrebleu.__version__}: {compared} scores of {arguments.corpora} corpora, {differ} differ")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
