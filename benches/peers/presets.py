#!/usr/bin/env python3
"""Holds the presets to the programs that they are named after: same tokens, same scores.

    cargo build --release
    python3 benches/peers/presets.py TEXT.en [--lines 500] [--peer hf --peer marian] [--json FILE]

The programs are the real ones, from PyPI; one file peer_*.py each says how it is called. Each setting is searched by the program and
by beamfuse under the matching preset, over the first lines of TEXT.en. Reported are the lines whose best hypothesis has the same
tokens, those whose whole n-best list has, and, where the whole list agrees, the largest difference of scores. Ends with 1 if a setting
agrees on fewer lines than --least. What is left over are ties: the engines add up in different orders, and a difference in the last
bits decides between hypotheses that score the same to five digits.
"""
import argparse, json, pathlib, subprocess, sys, time

import environment
from environment import ROOT
from peer_ctranslate2 import CTranslate2
from peer_fairseq import Fairseq
from peer_hf import Transformers
from peer_marian import Marian

# Larger differences of scores are none of rounding.
SCORE_TOLERANCE = 1e-4
PEERS = (Transformers, CTranslate2, Fairseq, Marian)


def given_prefixes(engine, options, count):
    """The translations' first words, for each line, where the setting gives any."""
    if 'alternatives' in options:
        return engine.prefixes()
    return [options['prefix']] * count if 'prefix' in options else []


def ours(binary, engine, lines, options, flags):
    """What beamfuse finds, for each line (tokens, score) of all hypotheses."""
    items = [{'source': line} for line in lines]
    for item, prefix in zip(items, given_prefixes(engine, options, len(lines))):
        item['target_prefix'] = prefix
    if 'alternatives' not in options:
        flags = ['--n-best', options.get('num_beams') or options['beam_size'], *flags]
    command = [binary, 'translate', '--model', engine.model, '--preset', engine.preset, '--format', 'jsonl', *flags]
    text = ''.join(json.dumps(item) + '\n' for item in items)
    done = subprocess.run([str(part) for part in command], input=text, stdout=subprocess.PIPE, encoding='utf8', check=True)
    results = [json.loads(line)['hypotheses'] for line in done.stdout.splitlines()]
    kept = '' if getattr(engine, 'shows_end', True) else '</s>'
    return [[([t for t in h['tokens'] if t != kept], h['score']) for h in hypotheses] for hypotheses in results]


def compare(theirs, ours):
    """Lines with the same best tokens, and with the same list; the largest difference of scores where the list is the same."""
    best = sum(t[0][0] == o[0][0] for t, o in zip(theirs, ours))
    same = [(t, o) for t, o in zip(theirs, ours) if [h[0] for h in t] == [h[0] for h in o]]
    scores = [abs(a[1] - b[1]) for t, o in same for a, b in zip(t, o) if a[1] is not None]
    return best, len(same), max(scores, default=None)


def show(theirs, mine, lines, count):
    """The first lines whose lists differ, with both lists."""
    differing = [i for i, (t, o) in enumerate(zip(theirs, mine)) if [h[0] for h in t] != [h[0] for h in o]]
    for i in differing[:count]:
        print(f'  line {i + 1}: {lines[i]}')
        for side, found in (('theirs', theirs[i]), ('ours', mine[i])):
            for tokens, score in found:
                print(f"    {side:>6} {score} {' '.join(tokens)}")


def measure(engine, setting, lines, arguments):
    """One setting's row, printed too."""
    start, (name, options, flags) = time.time(), setting
    theirs, mine = engine.search(options), ours(arguments.binary, engine, lines, options, flags)
    best, whole, score = compare(theirs, mine)
    tolerance = getattr(engine, 'score_tolerance', SCORE_TOLERANCE)
    ok = best >= arguments.least * len(lines) and (score or 0) < tolerance
    shown = 'none to compare' if score is None else f'{score:.1e}'
    print(f"{engine.preset:>11}  {name:<52} best {100 * best / len(lines):6.2f}%  list {100 * whole / len(lines):6.2f}%  "
          f"scores {shown}{'' if ok else '  NOT ENOUGH'}  ({time.time() - start:.0f} s)", flush=True)
    show(theirs, mine, lines, arguments.show)
    return dict(preset=engine.preset, setting=name, lines=len(lines), best=best, lists=whole, score=score, ok=ok)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text', type=pathlib.Path, help='source text, one sentence per line')
    parser.add_argument('--lines', type=int, default=500)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--binary', type=pathlib.Path, default=ROOT / 'target' / 'release' / 'beamfuse')
    parser.add_argument('--peer', action='append', choices=[peer.preset for peer in PEERS], help='default: all')
    parser.add_argument('--only', help='settings whose name contains this')
    parser.add_argument('--least', type=float, default=0.995, help='share of lines whose best tokens agree, in every setting')
    parser.add_argument('--json', type=pathlib.Path, help='write the figures to this file')
    parser.add_argument('--show', type=int, default=0, help='print so many lines that differ, of each setting')
    arguments = parser.parse_args()
    environment.enter()
    import sentencepiece
    processor = sentencepiece.SentencePieceProcessor(str(arguments.model / 'source.spm'))
    lines = [line for line in arguments.text.read_text(encoding='utf8').splitlines() if line.strip()][:arguments.lines]
    pieces = [processor.encode(line, out_type=str) + ['</s>'] for line in lines]
    rows, versions = [], {}
    for peer in PEERS:
        if arguments.peer and peer.preset not in arguments.peer:
            continue
        engine = peer(arguments.model, pieces)
        versions |= engine.versions()
        chosen = [setting for setting in peer.settings if (arguments.only or '') in setting[0]]
        rows += [measure(engine, setting, lines, arguments) for setting in chosen]
    if arguments.json:
        report = dict(versions=versions, text=arguments.text.name, rows=rows)
        arguments.json.write_text(json.dumps(report, indent=1) + '\n')
    sys.exit(0 if all(row['ok'] for row in rows) else 1)


if __name__ == '__main__':
    main()
