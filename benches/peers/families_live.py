#!/usr/bin/env python3
"""Holds the presets hf and ctranslate2 to the programs themselves, on T5 and NLLB models with random weights.

    cargo build --release
    python3 benches/peers/families_live.py GOLDEN TEXT.en [--lines 100] [--binary FILE] [--json FILE]

GOLDEN has the directories `t5` and `nllb`, as tests/data/families/README.md describes them. Each line is searched by transformers' `generate`, a
sentence at a time, and by CTranslate2's `translate_batch`, in float32, and by `beamfuse translate --preset`; compared are the ids of the
best translation. Lines that differ are printed with both scores: with random weights many are close. The packages that are needed are
installed as for presets.py. Ends with 1 if more than one line in a hundred differs.
"""
import argparse, json, pathlib, shutil, subprocess, sys, tempfile, warnings

import environment
from environment import ROOT

LANGUAGES = {'t5': None, 'nllb': ('eng_Latn', 'deu_Latn')}
BEAMS = [1, 2, 4]
# Tokens of a translation; the language's is counted by CTranslate2, and by us.
MOST = 40


def with_heads_alike(directory, copies):
    """A copy with as many heads on either side: CTranslate2 has one number for both."""
    copy = copies / directory.name
    shutil.copytree(directory, copy)
    config = json.loads((copy / 'config.json').read_text())
    if 'encoder_attention_heads' in config:
        config['decoder_attention_heads'] = config['encoder_attention_heads']
    (copy / 'config.json').write_text(json.dumps(config))
    return copy


def ours(binary, preset, directory, lines, beams, languages):
    """(ids, score) of each line's best translation."""
    named = ['--source-lang', languages[0], '--target-lang', languages[1]] if languages else []
    command = [binary, 'translate', '--quiet', '--preset', preset, '--model', directory, '--format', 'jsonl', '--input-format', 'text', '--beam-size', str(beams),
               '--max-length', str(MOST), *named]
    text = subprocess.run(command, input='\n'.join(lines) + '\n', capture_output=True, text=True, check=True).stdout
    best = [json.loads(line)['hypotheses'][0] for line in text.split('\n')[:-1]]
    return [(hypothesis['token_ids'], hypothesis['score']) for hypothesis in best]


def transformers_search(model, tokenizer, lines, beams, languages):
    import torch
    found = []
    for line in lines:
        forced = {'forced_bos_token_id': tokenizer.convert_tokens_to_ids(languages[1])} if languages else {}
        with torch.no_grad():
            out = model.generate(**tokenizer(line, return_tensors='pt'), num_beams=beams, max_new_tokens=MOST, return_dict_in_generate=True,
                                 output_scores=True, **forced)
        # Without the start token.
        ids = out.sequences[0].tolist()[1:]
        found.append((ids, float(out.sequences_scores[0]) if beams > 1 else None))
    return found


def ctranslate2_search(engine, ids, tokenizer, lines, beams, languages):
    """As the others. Of several ids that its table gives one name, as its converter does with T5's spare ones, the first."""
    sources = [tokenizer.convert_ids_to_tokens(tokenizer(line).input_ids) for line in lines]
    prefix = [[languages[1]]] * len(lines) if languages else None
    results = engine.translate_batch(sources, prefix, beam_size=beams, max_decoding_length=MOST, return_scores=True, return_end_token=True)
    return [([ids[token] for token in result.hypotheses[0]], result.scores[0]) for result in results]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('golden', type=pathlib.Path)
    parser.add_argument('text', type=pathlib.Path)
    parser.add_argument('--lines', type=int, default=100)
    parser.add_argument('--binary', type=pathlib.Path, default=ROOT / 'target' / 'release' / 'beamfuse')
    parser.add_argument('--json', type=pathlib.Path)
    arguments = parser.parse_args()
    environment.enter()
    import ctranslate2, transformers
    from ctranslate2.converters import TransformersConverter
    warnings.filterwarnings('ignore')
    transformers.logging.set_verbosity_error()
    text = [line for line in arguments.text.read_text(encoding='utf8').split('\n') if line.strip()]
    rows, failed = [], False
    copies = tempfile.mkdtemp()
    for name, languages in LANGUAGES.items():
        directory = with_heads_alike(arguments.golden / name, pathlib.Path(copies))
        spoken = dict(src_lang=languages[0], tgt_lang=languages[1]) if languages else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **spoken)
        # The models have 64 positions.
        lines = [line for line in text if len(tokenizer(line).input_ids) <= 60][:arguments.lines]
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).float().eval()
        with tempfile.TemporaryDirectory() as scratch:
            TransformersConverter(str(directory)).convert(scratch, force=True)
            table = json.loads((pathlib.Path(scratch) / 'shared_vocabulary.json').read_text(encoding='utf8'))
            ids = {token: i for i, token in reversed(list(enumerate(table)))}
            # What its answers can tell of an id.
            told = {'hf': lambda found: found, 'ctranslate2': lambda found: [ids[table[i]] for i in found]}
            engine = ctranslate2.Translator(scratch, compute_type='float32', inter_threads=1)
            searches = {'hf': lambda beams: transformers_search(model, tokenizer, lines, beams, languages),
                        'ctranslate2': lambda beams: ctranslate2_search(engine, ids, tokenizer, lines, beams, languages)}
            for preset, search in searches.items():
                for beams in BEAMS:
                    theirs, mine = search(beams), ours(arguments.binary, preset, directory, lines, beams, languages)
                    different = [(line, a, b) for line, a, b in zip(lines, theirs, mine) if a[0] != told[preset](b[0])]
                    rows.append(dict(model=name, preset=preset, beams=beams, lines=len(lines), same=len(lines) - len(different)))
                    failed |= len(different) * 100 > len(lines)
                    print(f'{name}, {preset}, {beams} beams: {rows[-1]["same"]} of {len(lines)} lines the same', flush=True)
                    for line, (their_ids, their_score), (my_ids, my_score) in different[:3]:
                        print(f'    {line}\n    theirs {their_score} {their_ids}\n    ours   {my_score} {my_ids}')
    if arguments.json:
        report = dict(environment.versions('ctranslate2', 'transformers', 'torch'), command=sys.argv, searches=rows)
        arguments.json.write_text(json.dumps(report, indent=1) + '\n')
    shutil.rmtree(copies)
    sys.exit(failed)


if __name__ == '__main__':
    main()
