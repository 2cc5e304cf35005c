#!/usr/bin/env python3
"""Trains a small T5 and a small NLLB with `beamfuse train` and counts how often they, and the demo model, translate in narrower types as in f32.

    python3 benches/peers/families_trained.py DATA --output benches/results/families-trained.json

DATA holds m30k.train.en, m30k.test_2016_flickr.en and .de. Both models learn the demo model's translations of the former (Kim & Rush 2016), so that
they are about as sure of what they say as it is: where a model is not, rounding changes more. They get a SentencePiece model of their own
(2,000 pieces of that text), configuration and random weights from transformers, and their weights from `beamfuse train`. The test set is
translated in i8 and bf16 on the CPU and in f16 on the emulated device, by beam search with 4 beams; the record has the share of
lines with the tokens of f32, how f32 scores the others (the score of what it found itself less that of what was found), BLEU and chrF2 with
the paired difference and its interval, and in how many lines CTranslate2's int8, too, translates as its float32 does. What is done
already in --work is not done again. The packages that are needed are installed as for presets.py; --build has the features `train`
and `emulator`.
"""
import argparse, datetime, json, pathlib, platform, statistics, subprocess

import environment
from environment import HOME, ROOT

LANGUAGES = ['--source-lang', 'eng_Latn', '--target-lang', 'deu_Latn']
# What bounds are for: the shares of lines with the tokens of f32, and the paired difference in BLEU.
TYPES = {'f16': ['--device', 'emulated'], 'bf16': [], 'i8': []}


def pieces(directory, lines, **ids):
    import sentencepiece
    path = directory / 'pieces.model'
    with open(path, 'wb') as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, model_type='bpe', vocab_size=2000, minloglevel=2, **ids)
    return str(path)


def t5(directory, lines):
    """As T5 1.1: relative positions, RMS norms, a gated feed-forward part, tables that are not tied."""
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration, T5Tokenizer
    tokenizer = T5Tokenizer(pieces(directory, lines, pad_id=0, eos_id=1, unk_id=2, bos_id=-1), extra_ids=0)
    tokenizer.save_pretrained(directory)
    config = T5Config(vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, feed_forward_proj='gated-gelu', dropout_rate=0.1,
                      tie_word_embeddings=False, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(max_length=100, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return model


def nllb(directory, lines):
    """As NLLB-200: norms before each part, sinusoidal positions, languages as tokens, one tied table."""
    from transformers import GenerationConfig, M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer
    tokenizer = NllbTokenizer(pieces(directory, lines))
    tokenizer.save_pretrained(directory)
    (directory / 'tokenizer.json').unlink(missing_ok=True)
    config = M2M100Config(vocab_size=len(tokenizer), d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                          encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=256, dropout=0.1, scale_embedding=True, decoder_start_token_id=2)
    model = M2M100ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(max_length=100, decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    return model


# The demo model is as it comes.
DEMO = ROOT / 'models' / 'm30k-en-de'
FAMILIES = {'marian': (None, []), 't5': (t5, []), 'nllb': (nllb, LANGUAGES)}


class Run:
    def __init__(self, arguments):
        self.build, self.work, self.commands = arguments.build, arguments.work, []

    def beamfuse(self, *words, done, more=()):
        """One command, unless what it writes is there already; its standard output. The record has it without `more`."""
        words = [str(word) for word in words]
        command = ' '.join(['beamfuse', *words]).replace(f'{ROOT}/', '')
        if command not in self.commands:
            self.commands.append(command)
        if done is None or not done.exists():
            print('+', command, flush=True)
            return subprocess.run([self.build, *words, *more], check=True, stdout=subprocess.PIPE, text=True).stdout


def training_text(run, arguments):
    """The files of both sides of what is learnt."""
    source, target = arguments.data / 'm30k.train.en', arguments.work / 'taught.de'
    run.beamfuse('translate', '--model', DEMO, '--input', source, '--output', target, done=target)
    return source, target


def trained(run, name, arguments):
    """The directory of the trained model."""
    import torch, transformers
    transformers.logging.set_verbosity_error()
    build, languages = FAMILIES[name]
    if build is None:
        return DEMO
    start, end = arguments.work / f'{name}-start', arguments.work / name
    source, target = training_text(run, arguments)
    if not (start / 'model.safetensors').exists():
        start.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(1)
        build(start, [line for path in (source, target) for line in path.read_text().splitlines()]).save_pretrained(start)
    resume = ['--resume'] if (end / 'training' / 'state.safetensors').exists() else []
    run.beamfuse('train', '--model', start, '--source', source, '--target', target, '--skip-bad', '--objective', 'mle', '--updates', arguments.updates,
                 '--batch-tokens', 2048, '--learning-rate', '2e-3', '--keep', 'last', '--checkpoint-every', 200, '--output', end, *languages,
                 done=end / 'done', more=resume)
    (end / 'done').touch()
    return end


def translations(run, name, model, dtype, source):
    """Each line's best hypothesis."""
    output = source.parent / f'{name}.{dtype}.{source.stem}.jsonl'
    run.beamfuse('translate', '--model', model, '--dtype', dtype, '--beam-size', 4, '--input', source, '--format', 'jsonl', '--output', output, *TYPES.get(dtype, []),
                 *FAMILIES[name][1], done=output)
    return [json.loads(line)['hypotheses'][0] for line in output.read_text().splitlines()]


def log_probs(run, name, model, label, sources, found):
    """What f32 makes of what was found; None where the text is divided into other tokens than were found."""
    pairs, output = run.work / f'{name}.{label}.pairs.jsonl', run.work / f'{name}.{label}.scored.jsonl'
    pairs.write_text(''.join(json.dumps(dict(source=source, target=hypothesis['text'])) + '\n' for source, hypothesis in zip(sources, found)))
    run.beamfuse('score', '--model', model, '--input', pairs, '--output', output, *FAMILIES[name][1], done=None)
    scored = map(json.loads, output.read_text().splitlines())
    return [s['log_prob'] if s['token_ids'] == hypothesis['token_ids'] else None for s, hypothesis in zip(scored, found)]


def apart(run, name, model, dtype, sources, kinds):
    """How much better f32 scores what it found itself, for each line of which the type has found another translation."""
    changed = [at for at, (one, other) in enumerate(zip(kinds['f32'], kinds[dtype])) if one['token_ids'] != other['token_ids']]
    chosen = {kind: [found[at] for at in changed] for kind, found in kinds.items()}
    made = {kind: log_probs(run, name, model, f'{dtype}-{kind}', [sources[at] for at in changed], found) for kind, found in chosen.items()}
    score = lambda log_prob, hypothesis: None if log_prob is None else log_prob / hypothesis['length_penalty']
    scores = {kind: list(map(score, made[kind], chosen[kind])) for kind in kinds}
    differences = [one - other for one, other in zip(scores['f32'], scores[dtype]) if None not in (one, other)]
    median = lambda values: statistics.median(values) if values else 0.0
    return dict(differences=sorted(round(d, 5) for d in differences), median=median(differences), median_either_way=median(map(abs, differences)),
                other_division=len(changed) - len(differences))


def compared(run, name, model, dtype, arguments):
    """A type against f32."""
    count = arguments.lines
    files = {side: arguments.work / f'test{count}.{side}' for side in ('en', 'de')}
    for side, path in files.items():
        path.write_text(''.join(line + '\n' for line in (arguments.data / f'm30k.test_2016_flickr.{side}').read_text().split('\n')[:count]))
    kinds = {kind: translations(run, name, model, kind, files['en']) for kind in ('f32', dtype)}
    texts = {kind: arguments.work / f'{name}.{kind}.{count}.txt' for kind in kinds}
    for kind, path in texts.items():
        path.write_text(''.join(hypothesis['text'] + '\n' for hypothesis in kinds[kind]))
    scores = json.loads(run.beamfuse('eval', '--hypotheses', texts[dtype], '--compare', texts['f32'], '--reference', files['de'], '--format', 'json', done=None))
    equal = sum(one['token_ids'] == other['token_ids'] for one, other in zip(*kinds.values()))
    others = apart(run, name, model, dtype, files['en'].read_text().split('\n'), kinds)
    return {'dtype': dtype, 'lines': count, 'equal_lines': equal, 'score_of_f32_less_that_of_the_others': others, 'scores': scores}


def of_ctranslate2(name, model, arguments):
    """Lines of the test set that CTranslate2 translates in int8 as in float32."""
    import ctranslate2, transformers
    from ctranslate2.converters import TransformersConverter
    converted = arguments.work / f'{name}-ctranslate2'
    if not converted.exists():
        TransformersConverter(str(model)).convert(str(converted))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, **(dict(src_lang=LANGUAGES[1]) if FAMILIES[name][1] else {}))
    lines = (arguments.work / f'test{arguments.lines}.en').read_text().split('\n')[:-1]
    sources = [tokenizer.convert_ids_to_tokens(tokenizer(line).input_ids) for line in lines]
    prefix = [[LANGUAGES[3]]] * len(lines) if FAMILIES[name][1] else None
    found = {}
    for kind in ('float32', 'int8'):
        engine = ctranslate2.Translator(str(converted), compute_type=kind, inter_threads=1)
        found[kind] = [result.hypotheses[0] for result in engine.translate_batch(sources, prefix, beam_size=4, max_decoding_length=100)]
    return {'lines': len(lines), 'equal_lines': sum(map(list.__eq__, found['int8'], found['float32']))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=pathlib.Path)
    parser.add_argument('--build', default=ROOT / 'target/release/beamfuse', type=pathlib.Path)
    parser.add_argument('--work', default=HOME / 'trained', type=pathlib.Path)
    parser.add_argument('--updates', default=3000, type=int)
    parser.add_argument('--lines', default=1000, type=int)
    parser.add_argument('--output', type=pathlib.Path)
    arguments = parser.parse_args()
    environment.enter()
    arguments.work.mkdir(parents=True, exist_ok=True)
    run, report = Run(arguments), {'models': [], 'ctranslate2_int8': {}}
    for name in FAMILIES:
        model = trained(run, name, arguments)
        for dtype in TYPES:
            found = {'model': name, **compared(run, name, model, dtype, arguments)}
            report['models'].append(found)
            print(f"{name} {dtype}: {found['equal_lines']} of {found['lines']} lines as in f32, {found['score_of_f32_less_that_of_the_others']}", flush=True)
        report['ctranslate2_int8'][name] = of_ctranslate2(name, model, arguments)
    version = subprocess.run([arguments.build, '--version'], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    report |= {'date': datetime.date.today().isoformat(), 'version': version, 'cpu': cpu(), 'updates': arguments.updates,
               'peers': environment.versions('ctranslate2', 'transformers', 'torch', 'sentencepiece'), 'commands': run.commands}
    text = json.dumps(report, indent=1) + '\n'
    arguments.output.write_text(text) if arguments.output else print(text)


def cpu():
    names = [line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
    return names[0] if names else platform.processor()


if __name__ == '__main__':
    main()
