#!/usr/bin/env python3
"""What the Python package costs beside the Rust library: the same lines, the same model, in turns.

    cargo build --release --example overhead
    python3 -m venv target/overhead && target/overhead/bin/pip install ./python
    target/overhead/bin/python benches/peers/python_overhead.py --output benches/results/python_overhead.json

Two processes keep the model open, one in Rust (examples/overhead.rs), one in Python. In each round each of them, the one that begins
changing from round to round, translates all lines in one call, and then line by line from 8 threads; default options, 32 slots. The
figure is the median over the rounds of Python's time by Rust's of the same round, with its quartiles. Both have to come to as many
characters. The machine should have nothing else to do.
"""
import argparse, json, os, pathlib, platform, statistics, subprocess, sys, threading, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ['batch', 'threads']


def child(model, path, threads):
    """The side of Python."""
    import beamfuse

    lines = pathlib.Path(path).read_text('utf-8').split('\n')[:-1]
    with beamfuse.Translator(model, threads=int(threads)) as translator:
        for told in sys.stdin:
            start = time.perf_counter()
            count = characters(translator.translate(lines)) if told.strip() == 'batch' else from_threads(translator, lines)
            print(time.perf_counter() - start, count, flush=True)


def from_threads(translator, lines):
    counts = [0] * 8

    def work(first):
        for line in lines[first::8]:
            counts[first] += characters(translator.translate([line]))

    threads = [threading.Thread(target=work, args=[first]) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def characters(translations):
    return sum(len(translation.text) for translation in translations)


class Side:
    """One of the two processes."""

    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, kind):
        print(kind, file=self.process.stdin, flush=True)
        said = self.process.stdout.readline().split()
        if len(said) != 2:
            sys.exit(f'{self.name} has ended')
        return float(said[0]), int(said[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--text', type=pathlib.Path, default=ROOT / 'tests' / 'data' / 'own' / 'own.en', help='its lines are repeated')
    parser.add_argument('--lines', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--output', type=pathlib.Path)
    arguments = parser.parse_args()
    # Lines that the model cannot read would end a call.
    own = [line for line in arguments.text.read_text('utf-8').splitlines() if line.strip() and len(line) < 300]
    lines = (own * (arguments.lines // len(own) + 1))[: arguments.lines]
    work = ROOT / 'target' / 'python_overhead.txt'
    work.write_text(''.join(f'{line}\n' for line in lines), 'utf-8')
    given = [str(arguments.model), str(work), str(arguments.threads)]
    rust = Side('rust', [os.environ.get('BEAMFUSE_OVERHEAD', ROOT / 'target' / 'release' / 'examples' / 'overhead'), *given])
    python = Side('python', [sys.executable, __file__, '--child', *given])
    seconds = {kind: {'rust': [], 'python': []} for kind in KINDS}
    for number in range(arguments.rounds + 1):
        for kind in KINDS:
            counts = {}
            for side in [rust, python] if number % 2 else [python, rust]:
                took, counts[side.name] = side.run(kind)
                # The first round warms up.
                if number:
                    seconds[kind][side.name].append(took)
            if counts['rust'] != counts['python']:
                sys.exit(f'{kind}: {counts} characters')
    report = dict(machine=dict(processor=processor(), threads=arguments.threads), command=sys.argv, lines=len(lines), rounds=arguments.rounds)
    for kind, of in seconds.items():
        low, middle, high = statistics.quantiles([p / r for p, r in zip(of['python'], of['rust'])], n=4)
        report[kind] = dict(
            rust_seconds=round(statistics.median(of['rust']), 4), python_seconds=round(statistics.median(of['python']), 4),
            python_by_rust=round(middle, 4), quartiles=[round(low, 4), round(high, 4)])
        print(kind, json.dumps(report[kind]))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')


def processor():
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        child(*sys.argv[2:])
    else:
        main()
