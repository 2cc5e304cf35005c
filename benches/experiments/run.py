#!/usr/bin/env python3
"""Three experiments about exposure bias and what remedies it, and the default recipe; three seeds each, every arm reported.

    pip install sacrebleu==2.6.0
    cargo build --release --features train
    benches/experiments/run.py distillation|beams|domain|recipe DATA OUTPUT

DATA holds m30k.train.en, m30k.train.de, the same of m30k.val and m30k.test_2016_flickr, tatoeba.train.tsv and tatoeba.val.tsv.

distillation: the amateur's shape, from scratch, on gold references against the demo model's translations of the same sources (Kim & Rush 2016).
beams: minimum risk training of the demo model against the beam curse; the control has a constant reward.
domain: the amateur's shape, from scratch, trained on Tatoeba alone and tested on Multi30k: likelihood, scheduled sampling, random tokens in
    its place (what a flatter or a damaged input gives by itself), minimum risk, and that with a constant reward.
recipe: the demo model, the default of `train` against likelihood of the same length; one seed.

Rates are chosen on validation sets, with the first seed, by chrF2 of greedy search. An effect is claimed only if all seeds agree in sign and
the interval over seeds and lines leaves out 0. What is done is not done again. OUTPUT/EXPERIMENT.json gets every figure.

From the environment: BEAMFUSE, UPDATES (3000), BATCH (512 tokens), RISK_UPDATES (150), RISK_BATCH (128), SEEDS ("1 2 3"), RATES ("3e-4 1e-3"
from scratch, "3e-5 1e-4" else), RISK_RATES ("1e-5 5e-5"), LINES, VAL_LINES, TRAIN_LINES (all of the test, validation and, for distillation, training set), DIAGNOSED (300), RESAMPLES (1000).
"""

import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF

ROOT = Path(__file__).resolve().parents[2]


def setting(name, default, kind=str):
    """A setting from the environment; a list where the default is one."""
    text = os.environ.get(name)
    if isinstance(default, list):
        return text.split() if text else default
    return kind(text) if text else default


BEAMFUSE = setting("BEAMFUSE", str(ROOT / "target/release/beamfuse"))
UPDATES, BATCH = setting("UPDATES", 3000, int), setting("BATCH", 512, int)
RISK_UPDATES, RISK_BATCH = setting("RISK_UPDATES", 150, int), setting("RISK_BATCH", 128, int)
SEEDS, RISK_RATES = setting("SEEDS", ["1", "2", "3"]), setting("RISK_RATES", ["1e-5", "5e-5"])
DIAGNOSED, RESAMPLES = setting("DIAGNOSED", 300, int), setting("RESAMPLES", 1000, int)
DEMO, AMATEUR = ROOT / "models/m30k-en-de", ROOT / "models/m30k-en-de-amateur"
LIKELIHOOD = ["--updates", UPDATES, "--batch-tokens", BATCH]
RISK = ["--objective", "mrt", "--updates", RISK_UPDATES, "--batch-tokens", RISK_BATCH, "--mrt-samples", 8, "--mrt-chunk-tokens", 1024]
# Warm-up as in the recipe, for shorter trials a third of the run.
SAMPLING = ["--objective", "scheduled-sampling", "--ss-warmup", min(1000, UPDATES // 3)]


def cpu():
    names = [line for line in lines_of("/proc/cpuinfo") if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def lines_of(path):
    return Path(path).read_text(encoding="utf-8").split("\n")[:-1]


def write_lines(path, lines):
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


class Experiment:
    """Runs of one experiment, in one directory."""

    def __init__(self, data, output, name):
        self.data, self.name, self.dir = Path(data), name, Path(output) / name
        self.dir.mkdir(parents=True, exist_ok=True)
        self.commands, self.choices = [], []
        count = setting("LINES", 0, int) or None
        self.test = {side: self.dir / f"test.{side}" for side in ("en", "de")}
        for side, path in self.test.items():
            write_lines(path, lines_of(self.data / f"m30k.test_2016_flickr.{side}")[:count])

    def run(self, done, *words, more=()):
        """One command, unless `done` exists already; the record has it either way, without `more`, and with paths as from the repository."""
        words = [str(word) for word in words]
        command = " ".join(["beamfuse", *words]).replace(f"{ROOT}/", "")
        if command not in self.commands:
            self.commands.append(command)
        if not done.exists():
            print("+", command, *more, file=sys.stderr, flush=True)
            subprocess.run([BEAMFUSE, *words, *more], check=True, stdout=subprocess.DEVNULL)

    def files(self, name):
        return ["--source", self.data / f"{name}.en", "--target", self.data / f"{name}.de"]

    def train(self, name, model, *options):
        """Trains, or goes on, unless that is done."""
        output = self.dir / name
        resume = ["--resume"] if (output / "training/state.safetensors").exists() else []
        self.run(output / "done", "train", "--model", model, "--skip-bad", "--keep", "last", "--checkpoint-every", 100, "--output", output,
                 *options, more=resume)
        (output / "done").touch()
        return output

    def translate(self, name, model, source, *options):
        """Translations of a file, one a line."""
        output = self.dir / f"{name}.txt"
        if output.exists() and len(lines_of(output)) < len(lines_of(source)):
            output.unlink()
        self.run(output, "translate", "--model", model, "--input", source, "--output", output, *options)
        return lines_of(output)

    def choose(self, name, model, rates, validation, *options):
        """Trains with the first seed at each rate; the one with the best chrF2 of greedy search on a validation set."""
        source, references = validation
        scores = {}
        for rate in rates:
            trained = self.train(f"{name}.{rate}.{SEEDS[0]}", model, "--learning-rate", rate, "--seed", SEEDS[0], *options)
            found = self.translate(f"{name}.{rate}.{SEEDS[0]}.val", trained, source, "--beam-size", 1)
            scores[rate] = CHRF().corpus_score(found, [references]).score
        best = max(rates, key=lambda rate: scores[rate])
        self.choices.append({"arm": name, "chrf2_on_validation": scores, "rate": best})
        return best

    def arm(self, name, model, rate, *options):
        """One trained model for each seed; `model` may be a list of one for each."""
        models = model if isinstance(model, list) else [model] * len(SEEDS)
        return [self.train(f"{name}.{rate}.{seed}", start, "--learning-rate", rate, "--seed", seed, *options)
                for seed, start in zip(SEEDS, models)]

    def diagnose(self, name, model):
        """The figures of a diagnosis on the first lines of the test set."""
        part = {side: self.dir / f"diagnosed.{side}" for side in self.test}
        for side, path in part.items():
            write_lines(path, lines_of(self.test[side])[:DIAGNOSED])
        output = self.dir / f"{name}.diagnosis.json"
        self.run(output, "diagnose", "--model", model, "--source", part["en"], "--reference", part["de"], "--skip-bad", "--sweep-lines", 10,
                 "--json", output)
        found = json.loads(output.read_text(encoding="utf-8"))
        keep = ["flagged lines", "distractor gap", "own minus gold accuracy", "area", "entropy", "negative log-likelihood"]
        figures = {f["name"]: {k: f[k] for k in ("value", "null", "difference")} for f in found["figures"] if f["name"] in keep}
        return {"figures": figures, "fires": [f["rule"] for f in found["verdict"]["findings"] if f["holds"]]}

    def look(self, name, models, searches, diagnosed=False):
        """Scores of an arm's models on the test set, for each search; translations stay, for `effect`."""
        references, seeds = lines_of(self.test["de"]), []
        for seed, model in zip(SEEDS, models):
            one = {"seed": seed, "searches": {}}
            for search, options in searches.items():
                found = self.translate(f"{name}.{seed}.{search}", model, self.test["en"], *options)
                bleu = BLEU().corpus_score(found, [references])
                one["searches"][search] = {
                    "chrf2": CHRF().corpus_score(found, [references]).score, "bleu": bleu.score,
                    "length_ratio": bleu.ratio, "empty": sum(not line.strip() for line in found) / len(found),
                }
            if diagnosed:
                one["diagnosis"] = self.diagnose(f"{name}.{seed}", model)
            seeds.append(one)
        return {"arm": name, "seeds": seeds}

    def effect(self, arm, control, search):
        """chrF2 of an arm less its control's: for each seed, and over seeds and lines."""
        references, metric = lines_of(self.test["de"]), CHRF()

        def counts(name):
            return [metric._extract_corpus_statistics(lines_of(self.dir / f"{name}.{seed}.{search}.txt"), [references]) for seed in SEEDS]

        def score(stats, drawn):
            return metric._compute_score_from_stats([sum(column) for column in zip(*(stats[i] for i in drawn))]).score

        ours, theirs, every = counts(arm), counts(control), range(len(references))
        by_seed = [score(a, every) - score(b, every) for a, b in zip(ours, theirs)]
        draw, differences = random.Random(12345), []
        for _ in range(RESAMPLES):
            lines = draw.choices(every, k=len(references))
            chosen = draw.choices(range(len(SEEDS)), k=len(SEEDS))
            differences.append(sum(score(ours[s], lines) - score(theirs[s], lines) for s in chosen) / len(chosen))
        differences.sort()
        low, high = differences[len(differences) // 40], differences[-len(differences) // 40 - 1]
        agree = all(d > 0 for d in by_seed) or all(d < 0 for d in by_seed)
        return {"arm": arm, "control": control, "search": search, "chrf2_by_seed": by_seed, "mean": sum(by_seed) / len(by_seed),
                "low": low, "high": high, "claimed": agree and (low > 0 or high < 0)}

    def record(self, arms, effects):
        version = subprocess.run([BEAMFUSE, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        report = {
            "experiment": self.name, "version": version, "machine": {"cpu": cpu(), "threads": len(os.sched_getaffinity(0))},
            "updates": UPDATES, "batch_tokens": BATCH, "risk_updates": RISK_UPDATES, "risk_batch_tokens": RISK_BATCH, "seeds": SEEDS,
            "test_lines": len(lines_of(self.test["de"])), "commands": self.commands, "choices": self.choices, "arms": arms,
            "effects": effects,
        }
        path = self.dir.parent / f"{self.name}.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for effect in effects:
            seeds = ", ".join(f"{d:+.2f}" for d in effect["chrf2_by_seed"])
            said = "an effect" if effect["claimed"] else "no effect is claimed"
            print(f"{effect['arm']} against {effect['control']}, {effect['search']}: chrF2 {effect['mean']:+.2f} [{effect['low']:+.2f}, "
                  f"{effect['high']:+.2f}], by seed {seeds}: {said}")
        print(path)


GREEDY_AND_BEAM = {"greedy": ["--beam-size", 1], "beam4": ["--beam-size", 4]}


def validation_set(e, sources, references):
    count = setting("VAL_LINES", 0, int) or None
    write_lines(e.dir / "val.en", sources[:count])
    return e.dir / "val.en", references[:count]


def m30k_validation(e):
    return validation_set(e, lines_of(e.data / "m30k.val.en"), lines_of(e.data / "m30k.val.de"))


def distillation(e):
    source, validation = e.data / "m30k.train.en", m30k_validation(e)
    write_lines(e.dir / "train.en", lines_of(source)[: setting("TRAIN_LINES", 0, int) or None])
    taught = e.dir / "taught.txt"
    e.translate("taught", DEMO, e.dir / "train.en")
    rates = setting("RATES", ["3e-4", "1e-3"])
    write_lines(e.dir / "train.de", lines_of(e.data / "m30k.train.de")[: setting("TRAIN_LINES", 0, int) or None])
    gold = ["--source", e.dir / "train.en", "--target", e.dir / "train.de", "--from-scratch", "--objective", "mle", *LIKELIHOOD]
    distilled = ["--source", e.dir / "train.en", "--target", taught, "--from-scratch", "--objective", "mle", *LIKELIHOOD]
    arms = []
    for name, options in (("gold", gold), ("distilled", distilled)):
        rate = e.choose(name, AMATEUR, rates, validation, *options)
        arms.append(e.look(name, e.arm(name, AMATEUR, rate, *options), GREEDY_AND_BEAM))
    e.record(arms, [e.effect("distilled", "gold", search) for search in GREEDY_AND_BEAM])


def beams(e):
    searches = {"beam4": ["--beam-size", 4], "beam32-bare": ["--beam-size", 32, "--length-penalty", "none"]}
    options = [*e.files("m30k.train"), *RISK]
    rate = e.choose("mrt", DEMO, RISK_RATES, m30k_validation(e), *options)
    arms = [e.look("before", [DEMO] * len(SEEDS), searches)]
    arms.append(e.look("mrt", e.arm("mrt", DEMO, rate, *options), searches))
    constant = [*options, "--mrt-reward", "constant"]
    arms.append(e.look("mrt-constant", e.arm("mrt-constant", DEMO, rate, *constant), searches))
    pairs = [("mrt", "mrt-constant"), ("mrt-constant", "before"), ("mrt", "before")]
    e.record(arms, [e.effect(arm, control, search) for arm, control in pairs for search in searches])


def domain(e):
    pairs = [line.split("\t") for line in lines_of(e.data / "tatoeba.val.tsv")]
    validation = validation_set(e, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    data = ["--data", e.data / "tatoeba.train.tsv"]
    rates = setting("RATES", ["3e-4", "1e-3"])
    scratch = [*data, "--from-scratch", *LIKELIHOOD]
    arms, searches = [], GREEDY_AND_BEAM
    mle = [*scratch, "--objective", "mle"]
    rate = e.choose("mle", AMATEUR, rates, validation, *mle)
    start = e.arm("mle", AMATEUR, rate, *mle)
    arms.append(e.look("mle", start, searches, True))
    # At the highest temperature picks are all but uniform: random tokens as often as scheduled sampling feeds the model's own.
    shared = [*scratch, *SAMPLING]
    for name, options in (("scheduled", shared), ("random", [*shared, "--ss-temperature", 100])):
        rate = e.choose(name, AMATEUR, rates, validation, *options)
        arms.append(e.look(name, e.arm(name, AMATEUR, rate, *options), searches, True))
    risk = [*data, *RISK]
    rate = e.choose("mrt", start[0], RISK_RATES, validation, *risk)
    arms.append(e.look("mrt", e.arm("mrt", start, rate, *risk), searches, True))
    constant = [*risk, "--mrt-reward", "constant"]
    arms.append(e.look("mrt-constant", e.arm("mrt-constant", start, rate, *constant), searches, True))
    pairs = [("scheduled", "mle"), ("scheduled", "random"), ("random", "mle"), ("mrt", "mrt-constant"), ("mrt-constant", "mle")]
    e.record(arms, [e.effect(arm, control, search) for arm, control in pairs for search in searches])


def recipe(e):
    global SEEDS
    SEEDS = SEEDS[:1]
    data, rates = e.files("m30k.train"), setting("RATES", ["3e-5", "1e-4"])
    arms = []
    for name, options in (("mle", ["--objective", "mle"]), ("recipe", SAMPLING)):
        options = [*data, *LIKELIHOOD, *options]
        rate = e.choose(name, DEMO, rates, m30k_validation(e), *options)
        arms.append(e.look(name, e.arm(name, DEMO, rate, *options), GREEDY_AND_BEAM, True))
    e.record(arms, [e.effect("recipe", "mle", search) for search in GREEDY_AND_BEAM])


def main():
    experiments = {"distillation": distillation, "beams": beams, "domain": domain, "recipe": recipe}
    if len(sys.argv) != 4 or sys.argv[1] not in experiments:
        sys.exit(__doc__)
    name, data, output = sys.argv[1:]
    experiments[name](Experiment(data, output, name))


if __name__ == "__main__":
    main()
