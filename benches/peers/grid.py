#!/usr/bin/env python3
"""Times beamfuse against CTranslate2 on this machine's CPU, over batches, lengths and threads.

    cargo build --release
    python3 benches/peers/grid.py --output benches/results/grid-cpu.json

Random weights of OPUS-MT base shape (see cpu.py), beam 4, translations as long as their sources. Lengths and batches with two workers
of one thread, each with a batch of its own, and batches of one length with one; `--most` leaves out what takes long. Engines take
turns. Tokens are those of the best translations; loading and tokenisation are not timed. bf16 is compared with CTranslate2's f32: it
has no bf16 on CPUs.
"""
import argparse, importlib.metadata, json, os, pathlib, random, statistics, sys

import environment
from cpu import BEAM, COUNTERPART, PRECISIONS, Beamfuse, CTranslate2, machine, opus_shape, take_avx512
from environment import ROOT

BATCHES = [1, 8, 32, 128]
LENGTHS = [16, 64, 256]
ONE_WORKER_LENGTH = 64


def cells(most):
    """Workers, length and batch of each."""
    for workers in (2, 1):
        for length in LENGTHS if workers == 2 else [ONE_WORKER_LENGTH]:
            for batch in BATCHES:
                if batch * length <= most:
                    yield workers, length, batch


def sources(vocabulary, length, count):
    rng = random.Random(length)
    return [[rng.choice(vocabulary) for _ in range(length - 1)] + ['</s>'] for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de', help='whose pieces are taken')
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--most', type=int, default=8192, help='tokens of a worker\'s batch')
    parser.add_argument('--output', type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    take_avx512()
    environment.enter()
    opus = opus_shape(arguments.model)
    vocabulary = [p for p in json.load(open(opus / 'vocab.json')) if not p.startswith('<')]
    report = dict(command=sys.argv, machine=machine(), beam=BEAM, ctranslate2_isa=os.environ.get('CT2_FORCE_CPU_ISA'),
                  versions={'ctranslate2': importlib.metadata.version('ctranslate2')}, rows=[])
    for workers, length, batch in cells(arguments.most):
        count, setting = workers * batch, dict(workers=workers, threads=1)
        engines = [Beamfuse(opus, None, length), CTranslate2(opus, sources(vocabulary, length, count), length)]
        figures = {}
        for number in range(arguments.rounds):
            for precision in PRECISIONS:
                for engine in engines[::-1] if number % 2 else engines:
                    if precision in engine.PRECISIONS:
                        tokens, seconds = engine.run(precision, setting, batch, count)
                        figures.setdefault((engine.name, precision), []).append(tokens / seconds)
        speed = {key: statistics.median(rounds) for key, rounds in figures.items()}
        for precision in PRECISIONS:
            ours, theirs = speed['beamfuse', precision], speed['CTranslate2', COUNTERPART[precision]]
            row = dict(workers=workers, length=length, batch=batch, precision=precision, beamfuse=round(ours, 1),
                       ctranslate2=round(theirs, 1), ratio=round(ours / theirs, 2))
            report['rows'].append(row)
            print(json.dumps(row), flush=True)
        report['machine']['load_at_end'] = os.getloadavg()[0]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
