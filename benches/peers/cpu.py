#!/usr/bin/env python3
"""Times beamfuse against CTranslate2 and transformers on this machine's CPU, in one run.

    cargo build --release
    python3 benches/peers/cpu.py --lines TEXT.en --output benches/results/cpu.json

Installs the peers from PyPI into target/peers. Two models: the one given (default: the demo model) on the lines of TEXT.en,
and random weights of OPUS-MT base shape (6+6 layers, d_model 512, feed-forward 2048, 58,101 pieces) at fixed lengths. Beam 4,
batch 1 and 32. Engines take turns, so that a slow moment of the machine hits all; each engine runs at several settings of
threads and its best is compared. Tokens are those of the best translations; loading and tokenisation are not timed.
"""
import argparse, importlib.metadata, json, os, pathlib, platform, random, shutil, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOME = ROOT / 'target' / 'peers'
PACKAGES = ['ctranslate2==4.8.*', 'transformers==4.57.*', 'torch==2.9.*', 'sentencepiece', 'sacremoses']
BEAM = 4
OPUS_LENGTH = 32


def in_own_environment():
    """Runs this script again under a Python that has the peers."""
    python = HOME / 'venv' / 'bin' / 'python'
    if not python.exists():
        subprocess.run([sys.executable, '-m', 'venv', HOME / 'venv'], check=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', *PACKAGES], check=True)
    os.execv(python, [str(python), *sys.argv, '--installed'])


def opus_shape(source):
    """A directory with random weights of OPUS-MT base shape, from a seed; pieces beyond the real ones are never read."""
    target = HOME / 'opus-base-random'
    if (target / 'model.safetensors').exists():
        return target
    import torch
    from transformers import MarianConfig, MarianMTModel
    size = 58101
    config = MarianConfig(vocab_size=size, d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048,
                          decoder_ffn_dim=2048, encoder_attention_heads=8, decoder_attention_heads=8,
                          max_position_embeddings=512, activation_function='swish', scale_embedding=True,
                          pad_token_id=size - 1, decoder_start_token_id=size - 1, eos_token_id=0, forced_eos_token_id=0)
    torch.manual_seed(1)
    MarianMTModel(config).save_pretrained(target)
    pieces = sorted(json.load(open(source / 'vocab.json')).items(), key=lambda p: p[1])
    vocab = {piece: i for i, (piece, _) in enumerate(pieces) if piece != '<pad>'}
    vocab.update({f'<unused{i}>': i for i in range(len(vocab), size - 1)})
    vocab['<pad>'] = size - 1
    json.dump(vocab, open(target / 'vocab.json', 'w'), ensure_ascii=False)
    for name in ('source.spm', 'target.spm', 'tokenizer_config.json'):
        shutil.copy(source / name, target / name)
    return target


class CTranslate2:
    name = 'CTranslate2'

    def __init__(self, model, sources, length):
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
        self.module, self.sources, self.length = ctranslate2, sources, length
        self.dir = HOME / ('ct2-' + model.name)
        if not self.dir.exists():
            TransformersConverter(str(model)).convert(str(self.dir))

    def settings(self):
        return [dict(dtype=d, inter_threads=i, intra_threads=j)
                for d in ('float32', 'int8') for i, j in ((1, 1), (2, 1), (1, 2))]

    def run(self, setting, batch, count):
        engine = self.module.Translator(str(self.dir), compute_type=setting['dtype'],
                                        inter_threads=setting['inter_threads'], intra_threads=setting['intra_threads'])
        limit = dict(min_decoding_length=self.length, max_decoding_length=self.length) if self.length else {}
        go = lambda some: engine.translate_batch(some, beam_size=BEAM, max_batch_size=batch, **limit)
        sources = self.sources[:count]
        go(sources[:2 * batch])
        start = time.perf_counter()
        results = go(sources)
        seconds = time.perf_counter() - start
        # Its hypotheses leave the end of sentence out, except where the length limit cut them.
        return sum(len(r.hypotheses[0]) + (0 if self.length else 1) for r in results), seconds


class Transformers:
    name = 'transformers'

    def __init__(self, model, sources, length):
        from transformers import MarianMTModel
        self.model, self.length = MarianMTModel.from_pretrained(model).float().eval(), length
        vocab = json.load(open(model / 'vocab.json'))
        self.pad = self.model.config.pad_token_id
        self.sources = [[vocab.get(p, vocab['<unk>']) for p in s] for s in sources]

    def settings(self):
        return [dict(dtype='float32', threads=t) for t in (1, 2)]

    def run(self, setting, batch, count):
        import torch
        torch.set_num_threads(setting['threads'])
        limit = dict(min_new_tokens=self.length, max_new_tokens=self.length) if self.length else dict(max_new_tokens=96)
        order = sorted(self.sources[:count], key=len, reverse=True)
        tokens, start = 0, time.perf_counter()
        for at in range(0, len(order), batch):
            part = order[at:at + batch]
            longest = max(map(len, part))
            ids = torch.tensor([s + [self.pad] * (longest - len(s)) for s in part])
            with torch.no_grad():
                out = self.model.generate(ids, attention_mask=(ids != self.pad).long(), num_beams=BEAM, **limit)
            tokens += int((out[:, 1:] != self.pad).sum())
        return tokens, time.perf_counter() - start


class Beamfuse:
    name = 'beamfuse'

    def __init__(self, model, lines, length):
        self.model, self.lines, self.length = model, lines, length

    def settings(self):
        return [dict(dtype=d, threads=t) for d in ('f32', 'i8') for t in (1, 2)]

    def run(self, setting, batch, count):
        report = HOME / 'beamfuse.json'
        command = [ROOT / 'target' / 'release' / 'beamfuse', 'bench', '--model', self.model, '--json', report,
                   '--batch-size', batch, '--beam-size', BEAM, '--threads', setting['threads'], '--dtype',
                   setting['dtype'], '--repeat', 1, '--warmup', 1, '--sentences', count]
        command += ['--lengths', self.length] if self.length else ['--input', self.lines]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        row = json.load(open(report))['results'][0]
        return row['tokens'], row['seconds'][0]


def measure(engines, counts, rounds):
    """Tokens per second of each engine and setting, by batch; engines take turns within a round."""
    rows = {}
    for round_number in range(rounds):
        for batch, count in counts.items():
            for engine in engines:
                for setting in engine.settings():
                    few = max(batch, count // 8) if engine.name == 'transformers' else count
                    tokens, seconds = engine.run(setting, batch, few)
                    key = (engine.name, json.dumps(setting), batch)
                    rows.setdefault(key, []).append(tokens / seconds)
                    print(f'round {round_number + 1}: batch {batch:>2} {engine.name:>12} {tokens / seconds:8.0f} tokens/s '
                          f'{setting}', flush=True)
    return [dict(engine=name, setting=json.loads(setting), batch=batch, tokens_per_second=statistics.median(figures),
                 rounds=figures) for (name, setting, batch), figures in rows.items()]


def summarise(rows):
    """Each engine's best setting, by batch and precision, and its ratio to CTranslate2's best."""
    best = {}
    for row in rows:
        precision = 'int8' if row['setting']['dtype'] in ('int8', 'i8') else 'f32'
        key = (row['batch'], precision, row['engine'])
        if key not in best or row['tokens_per_second'] > best[key]['tokens_per_second']:
            best[key] = row
    table = []
    for (batch, precision, engine), row in sorted(best.items()):
        peer = best[batch, precision, CTranslate2.name]['tokens_per_second']
        table.append(dict(batch=batch, precision=precision, engine=engine, setting=row['setting'],
                          tokens_per_second=round(row['tokens_per_second']),
                          times_ctranslate2=round(row['tokens_per_second'] / peer, 2)))
    return table


def machine():
    model = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
    return dict(cpu=model, cores=os.cpu_count(), system=platform.platform(), load=os.getloadavg()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--lines', type=pathlib.Path, required=True, help='source text, one sentence per line')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--output', type=pathlib.Path, required=True)
    parser.add_argument('--installed', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.installed:
        in_own_environment()
    import sentencepiece
    pieces = sentencepiece.SentencePieceProcessor(str(arguments.model / 'source.spm'))
    lines = [l.rstrip('\n') for l in open(arguments.lines, encoding='utf8')]
    text = [pieces.encode(l, out_type=str) + ['</s>'] for l in lines if l.strip()]
    opus = opus_shape(arguments.model)
    vocabulary = [p for p in json.load(open(opus / 'vocab.json')) if not p.startswith('<')]
    rng = random.Random(1)
    fixed = [[rng.choice(vocabulary) for _ in range(OPUS_LENGTH - 1)] + ['</s>'] for _ in range(64)]
    workloads = {
        arguments.model.name: (arguments.model, text, None, {1: min(200, len(text)), 32: min(1000, len(text))}),
        opus.name: (opus, fixed, OPUS_LENGTH, {1: 3, 32: 32}),
    }
    report = dict(command=sys.argv[:-1], machine=machine(), beam=BEAM,
                  versions={p: importlib.metadata.version(p) for p in ('ctranslate2', 'transformers', 'torch')}, workloads={})
    for name, (model, sources, length, counts) in workloads.items():
        engines = [Beamfuse(model, arguments.lines, length), CTranslate2(model, sources, length),
                   Transformers(model, sources, length)]
        rows = measure(engines, counts, arguments.rounds)
        report['workloads'][name] = dict(length=length, sentences=counts, best=summarise(rows), rows=rows)
    arguments.output.write_text(json.dumps(report, indent=1) + '\n')
    for name, workload in report['workloads'].items():
        for row in workload['best']:
            print(name, row)


if __name__ == '__main__':
    main()
