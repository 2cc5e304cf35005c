#!/usr/bin/env python3
"""Time per token as the batch and the sentences grow: a record and a chart.

    cargo build --release
    benches/scaling.py --output benches/results/scaling.json --chart docs/scaling.svg

Random weights of OPUS-MT base shape, beam 4, f32 and i8. One curve has sentences of 32 tokens, 4 to 1,024 decoded at once; the other has 32
decoded at once, of 8 to 512 tokens. Each translation is as long as its source, and all of a run are in one batch. Only beamfuse is run.
The packages that are needed are installed as for peers/cpu.py, and matplotlib with them.
"""
import argparse, json, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'benches' / 'peers'))
import cpu, environment

BATCHES = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
LENGTHS = [8, 16, 32, 64, 128, 256, 512]
TYPES = ['f32', 'i8']
FIXED_BATCH, FIXED_LENGTH = 32, 32


def measured(model, dtype, batch, length, repeat):
    """What `bench` writes of one shape."""
    with tempfile.NamedTemporaryFile(suffix='.json') as file:
        command = [cpu.BINARY, 'bench', '--model', model, '--dtype', dtype, '--lengths', length, '--batch-size', batch, '--sentences', batch, '--beam-size', 4,
                   '--repeat', repeat, '--warmup', 1 if batch * length < 2048 else 0, '--no-latency', '--json', file.name]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        found = json.load(open(file.name))
    row = found['results'][0]
    kept = {key: row[key] for key in ('batch_size', 'length', 'threads', 'workers', 'tokens', 'seconds')}
    entry = dict(dtype=dtype, **kept, us_per_token=round(1e6 / row['tokens_per_second'], 1), peak_memory_bytes=found['peak_memory_bytes'])
    print(json.dumps(entry), flush=True)
    return entry, found


def chart(report, path):
    import matplotlib
    matplotlib.use('svg')
    matplotlib.rcParams.update({'svg.hashsalt': 'beamfuse', 'font.size': 9})
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout='constrained')
    said = [('batch_size', f'sentences of {FIXED_LENGTH} tokens decoded at once', 'batch'), ('length', f'tokens of a sentence, {FIXED_BATCH} decoded at once', 'length')]
    for axis, (key, label, curve) in zip(axes, said):
        for dtype, mark in zip(TYPES, 'os'):
            rows = [row for row in report[curve] if row['dtype'] == dtype]
            axis.plot([row[key] for row in rows], [row['us_per_token'] / 1000 for row in rows], marker=mark, markersize=4, label=dtype)
        axis.set_xscale('log', base=2)
        axis.set_xticks([row[key] for row in rows], [str(row[key]) for row in rows])
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1.05 * max(row['us_per_token'] for row in report['batch'] + report['length']) / 1000)
    axes[0].set_ylabel('ms per token')
    axes[0].legend()
    figure.savefig(path, metadata={'Date': None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeat', default=3, type=int)
    parser.add_argument('--output', type=pathlib.Path)
    parser.add_argument('--chart', type=pathlib.Path)
    arguments = parser.parse_args()
    environment.enter()
    model = cpu.opus_shape(ROOT / 'models' / 'm30k-en-de')
    report = dict(command=['benches/scaling.py', *sys.argv[1:]], batch=[], length=[])
    for dtype in TYPES:
        for curve, shapes in dict(batch=[(batch, FIXED_LENGTH) for batch in BATCHES], length=[(FIXED_BATCH, length) for length in LENGTHS]).items():
            for batch, length in shapes:
                entry, found = measured(model, dtype, batch, length, arguments.repeat if batch * length <= 8192 else 1)
                report[curve].append(entry)
                report |= dict(machine=found['machine'], version=found['version'])
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')
    if arguments.chart:
        environment.need('matplotlib', 'matplotlib')
        chart(report, arguments.chart)


if __name__ == '__main__':
    main()
