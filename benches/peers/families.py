#!/usr/bin/env python3
"""Holds the command to the searches that transformers 4.57 made with small models of every family.

    cargo build --release
    python3 benches/peers/families.py GOLDEN [--only NAME,...] [--device cpu] [--dtype f32] [--json FILE]

GOLDEN holds a directory for each model, with an `expected.jsonl` as tests/data/families/README.md describes it. Each line of kind
`generate` is searched again by `beamfuse translate --preset hf`, from the recorded ids and languages. Every hypothesis must have
the recorded ids, and a score within 1e-3 of the recorded one, relative to its length in tokens. Ends with 1 if anything differs. Needs nothing but Python.

FSMT's must have been made with `use_cache=False`, others are left out: with its cache, transformers 4.57 embeds every generated token
at the first position.
"""
import argparse
import collections
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def flags(settings):
    """What was passed to `generate`, as options of the command; the length there counts the token that the decoder starts from."""
    said = {'max_length': lambda n: ['--max-length', n - 1], 'num_beams': lambda n: ['--beam-size', n],
            'num_return_sequences': lambda n: ['--n-best', n], 'length_penalty': lambda a: ['--alpha', a],
            'early_stopping': lambda early: ['--stop', 'first' if early else 'heuristic'], 'min_length': lambda n: ['--min-length', n],
            'no_repeat_ngram_size': lambda n: ['--no-repeat-ngram', n],
            'repetition_penalty': lambda p: ['--repetition-penalty', p], 'do_sample': lambda _: [], 'use_cache': lambda _: []}
    languages = {'forced_bos_token_id', 'decoder_start_token_id'}
    return [str(word) for name, value in settings.items() if name not in languages for word in said[name](value)]


def search(arguments, directory, options, lines):
    """The hypotheses of each line, best first."""
    sentences = []
    for line in lines:
        languages = {ours: line[theirs] for ours, theirs in (('source_lang', 'src_lang'), ('target_lang', 'tgt_lang')) if line.get(theirs)}
        sentences.append(json.dumps({'source_ids': line['input_ids'], **languages}))
    command = [arguments.beamfuse, 'translate', '--quiet', '--preset', 'hf', '--model', directory, '--format', 'jsonl', '--device', arguments.device,
               '--dtype', arguments.dtype, *options]
    ran = subprocess.run(command, input='\n'.join(sentences) + '\n', capture_output=True, text=True)
    # Not splitlines(): that splits at characters that stand in a text, too.
    found = [json.loads(line) for line in ran.stdout.split('\n')[:-1]]
    if len(found) != len(lines):
        sys.exit(f'{" ".join(map(str, command))}: {len(found)} lines for {len(lines)}: {ran.stderr.strip()}')
    return [line.get('hypotheses') or sys.exit(f'{directory.name}: {line["error"]}') for line in found]


def differences(expected, found):
    """What differs between the recorded hypotheses of a line and those found, and the largest difference of scores."""
    wrong, largest = [], 0.0
    for rank, (theirs, ours) in enumerate(zip(expected, found)):
        if theirs['token_ids'] != ours['token_ids']:
            wrong.append(f'hypothesis {rank}: {theirs["token_ids"]} expected, {ours["token_ids"]} found')
        elif 'score' in theirs:
            apart = abs(theirs['score'] - ours['score']) / max(1, len(theirs['token_ids']))
            largest = max(largest, apart)
            if apart > 1e-3:
                wrong.append(f'hypothesis {rank}: score {theirs["score"]} expected, {ours["score"]} found')
    if len(expected) != len(found):
        wrong.append(f'{len(expected)} hypotheses expected, {len(found)} found')
    return wrong, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('golden', type=pathlib.Path)
    parser.add_argument('--only', type=lambda names: names.split(','))
    parser.add_argument('--beamfuse', type=pathlib.Path, default=ROOT / 'target/release/beamfuse')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='f32')
    parser.add_argument('--json', type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    for path in sorted(arguments.golden.glob('*/expected.jsonl')):
        name = path.parent.name
        if arguments.only and name not in arguments.only:
            continue
        groups = collections.defaultdict(list)
        for line in map(json.loads, path.read_text(encoding='utf-8').split('\n')[:-1]):
            cached = line.get('settings', {}).get('use_cache', True)
            if line['kind'] == 'generate' and not (name == 'fsmt' and cached):
                groups[line['name'], tuple(flags(line['settings']))].append(line)
        for (kind, options), lines in groups.items():
            found = search(arguments, path.parent, options, lines)
            compared = [differences(line['hypotheses'], ours) for line, ours in zip(lines, found)]
            wrong = [text for texts, _ in compared for text in texts]
            rows.append({'model': name, 'search': kind, 'options': list(options), 'lines': len(lines), 'differ': sum(bool(w) for w, _ in compared),
                         'score_difference': max(apart for _, apart in compared)})
            print(f'{name:12} {kind:10} {len(lines):3} lines, {rows[-1]["differ"]} differ, scores within {rows[-1]["score_difference"]:.1e}',
                  *wrong[:1], flush=True)
    if arguments.json:
        version = subprocess.run([arguments.beamfuse, '--version'], capture_output=True, text=True, check=True).stdout.strip()
        report = {'version': version, 'device': arguments.device, 'dtype': arguments.dtype, 'searches': rows}
        arguments.json.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    lines, differ = (sum(row[key] for row in rows) for key in ('lines', 'differ'))
    print(f'{len({row["model"] for row in rows})} models, {lines} lines searched, {differ} differ')
    sys.exit(differ > 0 or not rows)


if __name__ == '__main__':
    main()
