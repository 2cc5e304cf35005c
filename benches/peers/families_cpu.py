#!/usr/bin/env python3
"""Times beamfuse against CTranslate2 on this machine's CPU at the sizes of T5-base, BART-large and NLLB-200-distilled-600M, in one run.

    cargo build --release
    python3 benches/peers/families_cpu.py GOLDEN --output benches/results/families-cpu.json [--only NAME ...]

Weights are random, from a seed: what is timed does not depend on them. GOLDEN has the directories `t5`, `bart` and `nllb`, whose
tokenizers the models are given (tests/data/families/README.md describes them). Random sources of 32 tokens are translated into 32
tokens, at beam 4: 64 of them at batch 32, 2 at batch 1. The batch is what one worker decodes at once; each engine runs as two workers
of one thread and as one of two, by turns, and its best is compared, as in cpu.py; bf16 is compared with CTranslate2's f32. Then, for
each engine and precision, the most memory that a process holds which opens the model and translates 32 sentences at batch 32.
"""
import argparse, importlib.metadata, json, os, pathlib, random, shutil, sys

import cpu, environment
from cpu import BEAM, BINARY, PRECISIONS, machine, measure, peak_memory, summarise, take_avx512
from environment import HOME, ROOT

LENGTH = 32
COUNTS = {1: 2, 32: 64}
SETTINGS = [dict(workers=2, threads=1), dict(workers=1, threads=2)]
SEED = 1


def shapes():
    """Family, configuration and class of each model."""
    from transformers import (BartConfig, BartForConditionalGeneration, M2M100Config, M2M100ForConditionalGeneration, T5Config,
                              T5ForConditionalGeneration)
    big = dict(d_model=1024, encoder_layers=12, decoder_layers=12, encoder_attention_heads=16, decoder_attention_heads=16,
               encoder_ffn_dim=4096, decoder_ffn_dim=4096)
    return {
        't5-base': ('t5', T5Config(vocab_size=32128, d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0),
                    T5ForConditionalGeneration),
        'bart-large': ('bart', BartConfig(vocab_size=50265, normalize_before=False, normalize_embedding=True, **big), BartForConditionalGeneration),
        'nllb-600m': ('nllb', M2M100Config(vocab_size=256206, activation_function='relu', scale_embedding=True, **big),
                      M2M100ForConditionalGeneration),
    }


def model(name, golden):
    """A directory with random weights of that shape, and the tokenizer of the small model of its family."""
    import torch
    family, config, build = shapes()[name]
    target = HOME / f'{name}-random'
    if not (target / 'complete').exists():
        torch.manual_seed(SEED)
        build(config).save_pretrained(target)
        for file in (golden / family).iterdir():
            if file.name not in ('config.json', 'generation_config.json', 'expected.jsonl') and 'model.' not in file.name.replace('spiece.model', ''):
                shutil.copy(file, target / file.name)
        (target / 'complete').touch()
    return target


def pieces(directory):
    """What CTranslate2 calls the ids: the tokenizer's pieces, and made-up ones behind them."""
    from transformers import AutoConfig, AutoTokenizer
    size = AutoConfig.from_pretrained(directory).vocab_size
    names = [piece for piece, _ in sorted(AutoTokenizer.from_pretrained(directory).get_vocab().items(), key=lambda item: item[1])][:size]
    return names + [f'<made-up-{i}>' for i in range(len(names), size)]


class CTranslate2(cpu.CTranslate2):
    SETTINGS = SETTINGS

    def converted(self, precision):
        """As a user would, but that the table has a name for each of the model's rows, of which the small tokenizer lacks most."""
        from ctranslate2.converters import transformers as converters
        directory = HOME / f'ctranslate2-{self.model.name}-{precision}'
        if not (directory / 'complete').exists():
            names = pieces(self.model)
            for loader in {type(loader) for loader in converters._MODEL_LOADERS.values()}:
                loader.get_vocabulary = lambda *_: list(names)
            quantization = 'int8' if precision == 'int8' else None
            converters.TransformersConverter(str(self.model)).convert(str(directory), quantization=quantization, force=True)
            (directory / 'complete').touch()
        return directory

    def program(self, precision, setting, sources):
        return [sys.executable, '-c', f'''
import json, ctranslate2
engine = ctranslate2.Translator({str(self.converted(precision))!r}, compute_type={precision.replace('f32', 'float32')!r},
                                inter_threads={setting['workers']}, intra_threads={setting['threads']})
engine.translate_batch(json.load(open({str(sources)!r})), beam_size={BEAM}, max_batch_size=32, min_decoding_length={LENGTH},
                       max_decoding_length={LENGTH})
''']


class Beamfuse(cpu.Beamfuse):
    SETTINGS = SETTINGS

    def options(self, precision, setting, batch):
        """NLLB's decoder starts with a target language; to CTranslate2's none is given, and one token more is no slower."""
        language = ['--target-lang', 'deu_Latn'] if self.model.name.startswith('nllb') else []
        return super().options(precision, setting, batch) + language

    def program(self, precision, setting):
        return [BINARY, 'bench', '--no-latency', '--repeat', 1, '--warmup', 0, '--sentences', 32, '--lengths', LENGTH,
                *self.options(precision, setting, 32)]


def memory(ours, theirs, sources):
    """VmHWM in MiB, with one worker of two threads; CTranslate2's less that of a Python that does nothing."""
    setting = dict(workers=1, threads=2)
    python = peak_memory([sys.executable, '-c', 'import json, time; time.sleep(0.2)'])
    rows = {f'beamfuse {precision}': peak_memory(ours.program(precision, setting)) for precision in PRECISIONS}
    for precision in theirs.PRECISIONS:
        rows[f'CTranslate2 {precision}'] = round(peak_memory(theirs.program(precision, setting, sources)) - python, 1)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('golden', type=pathlib.Path)
    parser.add_argument('--only', nargs='+', help='the models to time; the record keeps those of others [default: all]')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--output', type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    take_avx512()
    environment.enter()
    report = dict(machine=machine(), beam=BEAM, length=LENGTH, sentences=COUNTS,
                  ctranslate2_isa=os.environ.get('CT2_FORCE_CPU_ISA'),
                  versions={package: importlib.metadata.version(package) for package in ('ctranslate2', 'transformers', 'torch')}, models={})
    if arguments.only and arguments.output.exists():
        report['models'] = json.loads(arguments.output.read_text())['models']
    command = ['GOLDEN' if part == str(arguments.golden) else part for part in sys.argv]
    for name in arguments.only or shapes():
        directory = model(name, arguments.golden)
        rng, names = random.Random(SEED), pieces(directory)
        words = [piece for piece in names if not piece.startswith('<')]
        sources = [[rng.choice(words) for _ in range(LENGTH - 1)] + ['</s>'] for _ in range(max(COUNTS.values()))]
        file = HOME / f'{name}.json'
        file.write_text(json.dumps(sources[:32]))
        ours, theirs = Beamfuse(directory, None, LENGTH), CTranslate2(directory, sources, LENGTH)
        rows = measure([ours, theirs], COUNTS, arguments.rounds)
        report['models'][name] = dict(command=command, load=os.getloadavg()[0], best=summarise(rows), peak_memory_mib=memory(ours, theirs, file), rows=rows)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')
        print(f'{name}: {json.dumps(report["models"][name]["best"])} {report["models"][name]["peak_memory_mib"]}', flush=True)


if __name__ == '__main__':
    main()
