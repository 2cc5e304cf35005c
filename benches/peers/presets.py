#!/usr/bin/env python3
"""Holds the presets `hf` and `ctranslate2` to the real packages: same tokens, same scores.

    cargo build --release
    python3 benches/peers/presets.py TEXT.en [--lines 500] [--peer hf --peer ctranslate2] [--json FILE]

Each setting is searched by the package and by beamfuse under the matching preset, over the first lines of TEXT.en. Reported are the
lines whose best hypothesis has the same tokens, those whose whole n-best list has, and, where tokens agree, the largest difference
of scores. Ends with 1 if a setting agrees on fewer lines than --least. What is left over are ties: the engines add up in different
orders, and a difference in the last bits decides between hypotheses that score the same to five digits.
"""
import argparse, json, pathlib, shutil, subprocess, sys, time

import environment
from environment import HOME, ROOT

# Larger differences of scores are none of rounding.
SCORE_TOLERANCE = 1e-4


class Transformers:
    """`generate` in f32. It pads sentences of a batch, which changes bits, so that lines of one length go together."""
    preset = 'hf'
    # Name, arguments of generate, flags of beamfuse.
    settings = [
        ('greedy', dict(num_beams=1), ['--beam-size', 1]),
        ('beam 2', dict(num_beams=2), ['--beam-size', 2]),
        ('beam 4', dict(num_beams=4), []),
        ('beam 5, early stopping, length penalty 0.6', dict(num_beams=5, early_stopping=True, length_penalty=0.6),
         ['--beam-size', 5, '--stop', 'first', '--alpha', 0.6]),
        ('beam 4, early stopping "never", length penalty 1.2', dict(num_beams=4, early_stopping='never', length_penalty=1.2),
         ['--stop', 'exact', '--alpha', 1.2]),
        ('beam 4, length penalty 0', dict(num_beams=4, length_penalty=0.0), ['--alpha', 0]),
        ('beam 4, 12 tokens at most', dict(num_beams=4, max_length=13), ['--max-length', 12]),
        ('beam 4, 14 tokens at least', dict(num_beams=4, min_length=14), ['--min-length', 14]),
        ('beam 4, no bigram twice', dict(num_beams=4, no_repeat_ngram_size=2), ['--no-repeat-ngram', 2]),
        ('beam 4, repetition penalty 1.3', dict(num_beams=4, repetition_penalty=1.3), ['--repetition-penalty', 1.3]),
        ('beam 4, renormalized', dict(num_beams=4, renormalize_logits=True), ['--renormalize']),
    ]

    def __init__(self, model, pieces):
        import torch
        from transformers import MarianMTModel
        self.torch, self.model = torch, MarianMTModel.from_pretrained(model).float().eval()
        vocab = json.load(open(model / 'vocab.json'))
        self.names = {i: p for p, i in vocab.items()}
        self.sources = [[vocab.get(p, vocab['<unk>']) for p in s] for s in pieces]

    def search(self, arguments):
        torch, pad = self.torch, self.model.config.pad_token_id
        beams = arguments['num_beams']
        results = [None] * len(self.sources)
        by_length = {}
        for i, source in enumerate(self.sources):
            by_length.setdefault(len(source), []).append(i)
        for lines in by_length.values():
            for at in range(0, len(lines), 32):
                part = lines[at:at + 32]
                ids = torch.tensor([self.sources[i] for i in part])
                with torch.no_grad():
                    out = self.model.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=beams,
                                              return_dict_in_generate=True, output_scores=beams > 1, **arguments)
                scores = out.sequences_scores.tolist() if beams > 1 else [None] * len(part)
                # The start token stands in front, and is the padding at the end too.
                tokens = [[self.names[t] for t in row[1:] if t != pad] for row in out.sequences.tolist()]
                for j, i in enumerate(part):
                    results[i] = list(zip(tokens[j * beams:(j + 1) * beams], scores[j * beams:(j + 1) * beams]))
        return results


def in_f32(model):
    """A copy in f32: converted from f16, CTranslate2 would round its table of positions to f16, too."""
    from transformers import MarianMTModel
    copy = HOME / ('f32-' + model.name)
    copy.mkdir(parents=True, exist_ok=True)
    for name in ('source.spm', 'target.spm', 'vocab.json', 'tokenizer_config.json'):
        if (model / name).exists():
            shutil.copy(model / name, copy / name)
    MarianMTModel.from_pretrained(model).float().save_pretrained(copy)
    return copy


class CTranslate2:
    preset = 'ctranslate2'
    # Name, arguments of translate_batch, flags of beamfuse.
    settings = [
        ('greedy', dict(beam_size=1), ['--beam-size', 1]),
        ('beam 2', dict(beam_size=2), ['--beam-size', 2]),
        ('beam 4', dict(beam_size=4), ['--beam-size', 4]),
        ('beam 5', dict(beam_size=5), ['--beam-size', 5]),
        ('beam 4, length penalty 0.6', dict(beam_size=4, length_penalty=0.6), ['--beam-size', 4, '--alpha', 0.6]),
        ('beam 4, no penalty', dict(beam_size=4, length_penalty=0), ['--beam-size', 4, '--alpha', 0]),
        ('beam 4, patience 2', dict(beam_size=4, patience=2), ['--beam-size', 4, '--patience', 2]),
        ('beam 4, 12 tokens at most', dict(beam_size=4, max_decoding_length=12), ['--beam-size', 4, '--max-length', 12]),
        # It counts without the end of sentence here.
        ('beam 4, 14 tokens at least', dict(beam_size=4, min_decoding_length=13), ['--beam-size', 4, '--min-length', 14]),
        ('beam 4, no bigram twice', dict(beam_size=4, no_repeat_ngram_size=2), ['--beam-size', 4, '--no-repeat-ngram', 2]),
        # It searches on behind the prefix as if there were none: under a length penalty other hypotheses win there.
        ('greedy, 5 alternatives', dict(beam_size=1, alternatives=5), ['--beam-size', 1, '--alternatives', 5]),
        ('beam 4, no penalty, 5 alternatives', dict(beam_size=4, length_penalty=0, alternatives=5),
         ['--beam-size', 4, '--alpha', 0, '--alternatives', 5]),
    ]

    def __init__(self, model, pieces):
        import ctranslate2, sentencepiece
        from ctranslate2.converters import TransformersConverter
        directory = HOME / ('ct2-f32-' + model.name)
        if not directory.exists():
            TransformersConverter(str(in_f32(model))).convert(str(directory))
        self.engine = ctranslate2.Translator(str(directory), compute_type='float32', inter_threads=1, intra_threads=1)
        self.target = sentencepiece.SentencePieceProcessor(str(model / 'target.spm'))
        self.sources = pieces

    def search(self, arguments):
        limits = dict(return_scores=True, return_end_token=True, max_batch_size=32)
        if 'alternatives' not in arguments:
            found = self.engine.translate_batch(self.sources, num_hypotheses=arguments['beam_size'], **limits, **arguments)
            return [list(zip(result.hypotheses, result.scores)) for result in found]
        count = arguments['alternatives']
        rest = {name: value for name, value in arguments.items() if name != 'alternatives'}
        prefixes = [self.target.encode(prefix, out_type=str) for prefix in self.prefixes()]
        found = self.engine.translate_batch(self.sources, prefixes, num_hypotheses=count, return_alternatives=True, **limits, **rest)
        # Its scores leave the prefix out.
        return [[(tokens, None) for tokens in result.hypotheses] for result in found]

    def prefixes(self):
        """The first word of each line's translation, if it is one piece. Of a longer prefix in front of alternatives its Marian
        decoder zeroes all embeddings but the last, where it means the start token's alone."""
        found = self.engine.translate_batch(self.sources, beam_size=1, max_batch_size=32)
        words = [self.target.decode(result.hypotheses[0]).split()[:1] for result in found]
        return [word[0] if word and len(self.target.encode(word[0])) == 1 else '' for word in words]


def ours(binary, preset, model, items, flags):
    command = [binary, 'translate', '--model', model, '--preset', preset, '--format', 'jsonl', *flags]
    text = ''.join(json.dumps(item) + '\n' for item in items)
    done = subprocess.run([str(part) for part in command], input=text, stdout=subprocess.PIPE, encoding='utf8', check=True)
    results = [json.loads(line)['hypotheses'] for line in done.stdout.splitlines()]
    return [[(h['tokens'], h['score']) for h in hypotheses] for hypotheses in results]


def compare(theirs, ours):
    """Lines with the same best tokens, and with the same list; the largest difference of scores where the list is the same."""
    best = sum(t[0][0] == o[0][0] for t, o in zip(theirs, ours))
    same = [(t, o) for t, o in zip(theirs, ours) if [h[0] for h in t] == [h[0] for h in o]]
    scores = [abs(a[1] - b[1]) for t, o in same for a, b in zip(t, o) if a[1] is not None]
    return best, len(same), max(scores, default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text', type=pathlib.Path, help='source text, one sentence per line')
    parser.add_argument('--lines', type=int, default=500)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--binary', type=pathlib.Path, default=ROOT / 'target' / 'release' / 'beamfuse')
    parser.add_argument('--peer', action='append', choices=['hf', 'ctranslate2'], help='default: both')
    parser.add_argument('--only', help='settings whose name contains this')
    parser.add_argument('--least', type=float, default=0.995, help='share of lines whose best tokens agree, in every setting')
    parser.add_argument('--json', type=pathlib.Path, help='write the figures to this file')
    parser.add_argument('--show', type=int, default=0, help='print so many lines that differ, of each setting')
    arguments = parser.parse_args()
    environment.enter()
    import importlib.metadata, sentencepiece
    processor = sentencepiece.SentencePieceProcessor(str(arguments.model / 'source.spm'))
    lines = [line for line in arguments.text.read_text(encoding='utf8').splitlines() if line.strip()][:arguments.lines]
    pieces = [processor.encode(line, out_type=str) + ['</s>'] for line in lines]
    rows = []
    for peer in (Transformers, CTranslate2):
        if arguments.peer and peer.preset not in arguments.peer:
            continue
        engine = peer(arguments.model, pieces)
        for name, options, flags in peer.settings:
            if arguments.only and arguments.only not in name:
                continue
            start = time.time()
            beams = options.get('num_beams') or options['beam_size']
            items = [{'source': line} for line in lines]
            if 'alternatives' in options:
                items = [item | {'target_prefix': prefix} for item, prefix in zip(items, engine.prefixes())]
            else:
                flags = ['--n-best', beams, *flags]
            theirs, mine = engine.search(options), ours(arguments.binary, peer.preset, arguments.model, items, flags)
            best, whole, score = compare(theirs, mine)
            row = dict(preset=peer.preset, setting=name, lines=len(lines), best=best, lists=whole, score=score)
            ok = best >= arguments.least * len(lines) and (score or 0) < SCORE_TOLERANCE
            rows.append(row | dict(ok=ok))
            shown = 'none to compare' if score is None else f'{score:.1e}'
            print(f"{peer.preset:>11}  {name:<52} best {100 * best / len(lines):6.2f}%  list {100 * whole / len(lines):6.2f}%  "
                  f"scores {shown}{'' if ok else '  NOT ENOUGH'}  ({time.time() - start:.0f} s)", flush=True)
            differing = [(i, t, o) for i, (t, o) in enumerate(zip(theirs, mine)) if t[0][0] != o[0][0]]
            for i, t, o in differing[:arguments.show]:
                print(f"  line {i + 1}: {lines[i]}")
                for side, found in (('theirs', t), ('ours', o)):
                    for tokens, score in found:
                        print(f"    {side:>6} {score} {' '.join(tokens)}")
    if arguments.json:
        versions = {p: importlib.metadata.version(p) for p in ('transformers', 'torch', 'ctranslate2')}
        arguments.json.write_text(json.dumps(dict(versions=versions, text=arguments.text.name, rows=rows), indent=1) + '\n')
    sys.exit(0 if all(row['ok'] for row in rows) else 1)


if __name__ == '__main__':
    main()
