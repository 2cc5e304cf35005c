#!/usr/bin/env python3
"""Trains a small T5 and a small NLLB with `beamfuse train` and counts how often narrower types translate as f32 does.

    python3 benches/peers/families_trained.py DATA --output benches/results/families-trained.json

DATA holds m30k.train.en, m30k.train.de, the same of m30k.val and m30k.test_2016_flickr, and tatoeba.train.tsv. Both models get a SentencePiece
model of their own (2,000 pieces of the training text), configuration and random weights from transformers, and their weights from
`beamfuse train`. On the CPU i8 and bf16 translate the test set, on the emulated device f16 its first lines, all by beam search with 4
beams; the record has the share of lines with the tokens of f32, BLEU and chrF2 with the paired difference and its interval, and in how
many lines CTranslate2's int8, too, translates as its float32 does. What is
done already in --work is not done again. The packages that are needed are installed as for presets.py; --build has the features `train`
and `emulator`.
"""
import argparse, datetime, json, pathlib, platform, subprocess

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


FAMILIES = {'t5': (t5, []), 'nllb': (nllb, LANGUAGES)}


class Run:
    def __init__(self, arguments):
        self.build, self.commands = arguments.build, []

    def beamfuse(self, *words, done, more=()):
        """One command, unless what it writes is there already; its standard output. The record has it without `more`."""
        words = [str(word) for word in words]
        command = ' '.join(['beamfuse', *words]).replace(f'{ROOT}/', '')
        self.commands.append(command)
        if done is None or not done.exists():
            print('+', command, flush=True)
            return subprocess.run([self.build, *words, *more], check=True, stdout=subprocess.PIPE, text=True).stdout


def training_text(data, work):
    """Both corpora as lines of source TAB target; their sides."""
    lines = (data / 'tatoeba.train.tsv').read_text().split('\n')[:-1]
    sides = [(data / f'm30k.train.{side}').read_text().split('\n')[:-1] for side in ('en', 'de')]
    lines += [f'{source}\t{target}' for source, target in zip(*sides)]
    (work / 'train.tsv').write_text(''.join(line + '\n' for line in lines))
    return [side for line in lines for side in line.split('\t')]


def trained(run, name, arguments):
    """The directory of the trained model."""
    import torch, transformers
    transformers.logging.set_verbosity_error()
    build, languages = FAMILIES[name]
    start, end = arguments.work / f'{name}-start', arguments.work / name
    if not (start / 'model.safetensors').exists():
        start.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(1)
        build(start, training_text(arguments.data, arguments.work)).save_pretrained(start)
    resume = ['--resume'] if (end / 'training' / 'state.safetensors').exists() else []
    run.beamfuse('train', '--model', start, '--data', arguments.work / 'train.tsv', '--skip-bad', '--objective', 'mle', '--updates', arguments.updates,
                 '--batch-tokens', 2048, '--learning-rate', '2e-3', '--keep', 'last', '--checkpoint-every', 200, '--output', end, *languages,
                 done=end / 'done', more=resume)
    (end / 'done').touch()
    return end


def translations(run, name, model, dtype, source):
    """Tokens and text of each line's best hypothesis."""
    output = source.parent / f'{name}.{dtype}.{source.stem}.jsonl'
    run.beamfuse('translate', '--model', model, '--dtype', dtype, '--beam-size', 4, '--input', source, '--format', 'jsonl', '--output', output, *TYPES.get(dtype, []),
                 *FAMILIES[name][1], done=output)
    best = [json.loads(line)['hypotheses'][0] for line in output.read_text().splitlines()]
    return [b['token_ids'] for b in best], [b['text'] for b in best]


def compared(run, name, model, dtype, arguments):
    """A type against f32: on fewer lines where the device is emulated."""
    count = arguments.emulated_lines if dtype == 'f16' else arguments.lines
    files = {side: arguments.work / f'test{count}.{side}' for side in ('en', 'de')}
    for side, path in files.items():
        path.write_text(''.join(line + '\n' for line in (arguments.data / f'm30k.test_2016_flickr.{side}').read_text().split('\n')[:count]))
    kinds = {kind: translations(run, name, model, kind, files['en']) for kind in ('f32', dtype)}
    texts = {kind: arguments.work / f'{name}.{kind}.{count}.txt' for kind in kinds}
    for kind, path in texts.items():
        path.write_text(''.join(line + '\n' for line in kinds[kind][1]))
    scores = json.loads(run.beamfuse('eval', '--hypotheses', texts[dtype], '--compare', texts['f32'], '--reference', files['de'], '--format', 'json', done=None))
    equal = sum(map(list.__eq__, kinds[dtype][0], kinds['f32'][0]))
    return {'dtype': dtype, 'lines': count, 'equal_lines': equal, 'scores': scores}


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
    parser.add_argument('--updates', default=4000, type=int)
    parser.add_argument('--lines', default=1000, type=int)
    parser.add_argument('--emulated-lines', default=100, type=int)
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
            print(f"{name} {dtype}: {found['equal_lines']} of {found['lines']} lines as in f32", flush=True)
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
