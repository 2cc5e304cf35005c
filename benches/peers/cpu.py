#!/usr/bin/env python3
"""Times beamfuse against CTranslate2 and transformers on this machine's CPU, in one run.

    cargo build --release
    python3 benches/peers/cpu.py --lines TEXT.en --reference TEXT.de --output benches/results/cpu.json

Two models: the one given (default: the demo model) on the lines of TEXT.en, and random weights of OPUS-MT base shape (6+6 layers,
d_model 512, feed-forward 2048, 58,101 pieces) at a fixed length. Beam 4, batch 1 and 32. The batch is what one worker decodes at
once: with two of them, of either engine, twice as many sentences are under way. Engines take turns, so that a slow moment of the
machine hits all. bf16 is compared with CTranslate2's f32: it has no bf16 on CPUs. `--peer marian` lets Marian take part, in f32 on the text. Each runs at several settings of threads and workers,
from the second round on at those within a fifth of its best, and its best is compared. Tokens are those of the best translations;
loading and tokenisation are not timed.

Then, for the model given: the most memory that each process held, the time of a whole process that loads the model and translates
one line, and BLEU.
"""
import argparse, importlib.metadata, json, os, pathlib, platform, random, shutil, statistics, subprocess, sys, time

import environment, peer_marian
from environment import HOME, ROOT

BEAM = 4
OPUS_LENGTH = 32
BINARY = pathlib.Path(os.environ.get('BEAMFUSE_BINARY', ROOT / 'target' / 'release' / 'beamfuse'))
LINE = 'A man is riding a bike.'
PRECISIONS = ['f32', 'bf16', 'int8']
# What CTranslate2 is compared in.
COUNTERPART = dict(f32='f32', bf16='f32', int8='int8')


def opus_shape(source):
    """A directory with random weights of OPUS-MT base shape, from a seed; pieces beyond the real ones are never read."""
    target = HOME / 'opus-base-random'
    if (target / 'vocab.json').exists():
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
    for name in ('source.spm', 'target.spm', 'tokenizer_config.json'):
        shutil.copy(source / name, target / name)
    json.dump(vocab, open(target / 'vocab.json', 'w'), ensure_ascii=False)
    return target


class CTranslate2:
    name = 'CTranslate2'
    PRECISIONS = ['f32', 'int8']
    SETTINGS = [dict(workers=1, threads=1), dict(workers=2, threads=1), dict(workers=1, threads=2)]

    def __init__(self, model, sources, length):
        self.model, self.sources, self.length = model, sources, length

    def converted(self, precision):
        """The model's directory in CTranslate2's format, quantised as a user would."""
        from ctranslate2.converters import TransformersConverter
        directory = HOME / f'ctranslate2-{self.model.name}-{precision}'
        if not (directory / 'model.bin').exists():
            quantization = 'int8' if precision == 'int8' else None
            TransformersConverter(str(self.model)).convert(str(directory), quantization=quantization, force=True)
        return directory

    def open(self, precision, setting):
        import ctranslate2
        return ctranslate2.Translator(str(self.converted(precision)), compute_type=precision.replace('f32', 'float32'),
                                      inter_threads=setting['workers'], intra_threads=setting['threads'])

    def translate(self, engine, sources, batch):
        limit = dict(min_decoding_length=self.length, max_decoding_length=self.length) if self.length else {}
        return engine.translate_batch(sources, beam_size=BEAM, max_batch_size=batch, **limit)

    def run(self, precision, setting, batch, count):
        engine, sources = self.open(precision, setting), self.sources[:count]
        self.translate(engine, sources[:batch], batch)
        start = time.perf_counter()
        results = self.translate(engine, sources, batch)
        seconds = time.perf_counter() - start
        # Its hypotheses leave the end of sentence out, except where the length limit cut them.
        return sum(len(r.hypotheses[0]) + (0 if self.length else 1) for r in results), seconds

    def program(self, precision, setting, batch, sources):
        """A Python program that does nothing but this."""
        return [sys.executable, '-c', f'''
import json, sys, ctranslate2
engine = ctranslate2.Translator({str(self.converted(precision))!r}, compute_type={precision.replace('f32', 'float32')!r},
                                inter_threads={setting['workers']}, intra_threads={setting['threads']})
engine.translate_batch(json.load(open({str(sources)!r})), beam_size={BEAM}, max_batch_size={batch})
''']


class Transformers:
    name = 'transformers'
    PRECISIONS = ['f32']
    SETTINGS = [dict(workers=1, threads=1), dict(workers=1, threads=2)]

    def __init__(self, model, sources, length):
        from transformers import MarianMTModel
        self.model, self.length = MarianMTModel.from_pretrained(model).float().eval(), length
        vocab = json.load(open(model / 'vocab.json'))
        self.pad = self.model.config.pad_token_id
        self.sources = [[vocab.get(p, vocab['<unk>']) for p in s] for s in sources]

    def run(self, precision, setting, batch, count):
        import torch
        torch.set_num_threads(setting['threads'])
        limit = dict(min_new_tokens=self.length, max_new_tokens=self.length) if self.length else dict(max_new_tokens=96)
        order = sorted(self.sources[:max(batch, count // 8)], key=len, reverse=True)
        tokens, start = 0, time.perf_counter()
        for at in range(0, len(order), batch):
            part = order[at:at + batch]
            longest = max(map(len, part))
            ids = torch.tensor([s + [self.pad] * (longest - len(s)) for s in part])
            with torch.no_grad():
                out = self.model.generate(ids, attention_mask=(ids != self.pad).long(), num_beams=BEAM, **limit)
            tokens += int((out[:, 1:] != self.pad).sum())
        return tokens, time.perf_counter() - start


class Marian:
    """It has no minimum length, so that it cannot decode at a fixed one. Its threads are workers with a batch each."""
    name = 'Marian'
    PRECISIONS = ['f32']
    SETTINGS = [dict(workers=1, threads=1), dict(workers=2, threads=1)]

    def __init__(self, model, sources):
        environment.need('pymarian', peer_marian.REQUIREMENT)
        self.directory, self.sources = peer_marian.converted(model), [' '.join(s[:-1]) for s in sources]

    def run(self, precision, setting, batch, count):
        engine = peer_marian.open_engine(self.directory, cpu_threads=setting['workers'], beam_size=BEAM, mini_batch=batch,
                                         maxi_batch=100, maxi_batch_sort='src')
        engine.translate(self.sources[:batch])
        start = time.perf_counter()
        results = engine.translate(self.sources[:count])
        seconds = time.perf_counter() - start
        # The end of sentence is not among its tokens.
        return sum(len(line.split()) + 1 for line in results), seconds


class Beamfuse:
    name = 'beamfuse'
    PRECISIONS = PRECISIONS
    SETTINGS = [dict(workers=1, threads=1), dict(workers=2, threads=1), dict(workers=1, threads=2)]

    def __init__(self, model, lines, length):
        self.model, self.lines, self.length = model, lines, length

    def options(self, precision, setting, batch):
        workers = setting['workers']
        return ['--model', self.model, '--dtype', precision.replace('int8', 'i8'), '--workers', workers,
                '--threads', workers * setting['threads'], '--batch-size', workers * batch, '--beam-size', BEAM]

    def run(self, precision, setting, batch, count):
        report = HOME / 'beamfuse.json'
        command = [BINARY, 'bench', '--json', report, '--no-latency', '--repeat', 1, '--warmup', 1, '--sentences', count,
                   *self.options(precision, setting, batch)]
        command += ['--lengths', self.length] if self.length else ['--input', self.lines]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        row = json.load(open(report))['results'][0]
        return row['tokens'], row['seconds'][0]

    def program(self, precision, setting, batch, lines):
        return [BINARY, 'translate', '--input', lines, *self.options(precision, setting, batch)]


def measure(engines, counts, rounds):
    """Tokens per second of each engine, setting and batch; engines take turns within a round."""
    rows = {}
    for number in range(rounds):
        for batch, count in counts.items():
            for precision in PRECISIONS:
                for engine in engines:
                    if precision not in engine.PRECISIONS:
                        continue
                    for setting in promising(rows, engine, precision, batch):
                        tokens, seconds = engine.run(precision, setting, batch, count)
                        key = (engine.name, precision, batch, json.dumps(setting))
                        rows.setdefault(key, []).append(tokens / seconds)
                        print(f'round {number + 1}: batch {batch:>2} {precision:>4} {engine.name:>12} '
                              f'{tokens / seconds:8.0f} tokens/s {setting}', flush=True)
    return [dict(engine=name, precision=precision, batch=batch, setting=json.loads(setting),
                 tokens_per_second=statistics.median(figures), rounds=figures)
            for (name, precision, batch, setting), figures in rows.items()]


def promising(rows, engine, precision, batch):
    """The settings of the first round; after it those that came within a fifth of the engine's best there."""
    figures = [rows.get((engine.name, precision, batch, json.dumps(setting)), [None])[0] for setting in engine.SETTINGS]
    if None in figures:
        return engine.SETTINGS
    return [setting for setting, figure in zip(engine.SETTINGS, figures) if figure >= 0.8 * max(figures)]


def summarise(rows):
    """Each engine's best setting, by batch and precision, and its ratio to CTranslate2's best (in f32 for bf16)."""
    best = {}
    for row in rows:
        key = (row['batch'], row['precision'], row['engine'])
        if key not in best or row['tokens_per_second'] > best[key]['tokens_per_second']:
            best[key] = row
    table = []
    for (batch, precision, engine), row in sorted(best.items()):
        peer = best[batch, COUNTERPART[precision], CTranslate2.name]['tokens_per_second']
        table.append(dict(batch=batch, precision=precision, engine=engine, setting=row['setting'],
                          tokens_per_second=round(row['tokens_per_second']),
                          times_ctranslate2=round(row['tokens_per_second'] / peer, 2)))
    return table


def peak_memory(command):
    """The most memory that a process held, VmHWM in MiB, as last seen before it ended."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = open(f'/proc/{process.pid}/status').read()
        peak = max([peak] + [int(l.split()[1]) for l in status.splitlines() if l.startswith('VmHWM')])
        time.sleep(0.005)
    if process.returncode:
        sys.exit(f'{command}: ended with {process.returncode}')
    return round(peak / 1024, 1)


def memory(best, ours, theirs, lines, sources):
    """VmHWM of the processes that translate all lines at batch 32, each at its fastest setting."""
    python = peak_memory([sys.executable, '-c', 'import json, sys, time; time.sleep(0.2)'])
    rows = dict(python=python)
    for row in best:
        if row['batch'] == 32 and row['engine'] in (ours.name, theirs.name):
            engine, file = (ours, lines) if row['engine'] == ours.name else (theirs, sources)
            peak = peak_memory(engine.program(row['precision'], row['setting'], 32, file))
            rows[f"{row['engine']} {row['precision']}"] = peak
    for precision in PRECISIONS:
        rows[f'ratio {precision}'] = round(rows[f'{ours.name} {precision}']
                                           / (rows[f'{theirs.name} {COUNTERPART[precision]}'] - python), 2)
    return rows


def whole_process(ours, theirs, sources, runs=7):
    """Seconds from the start of a process that loads the model and translates one line to its end; medians."""
    single = dict(workers=1, threads=1)
    json.dump([json.load(open(sources))[0]], open(HOME / 'one.json', 'w'))
    commands = {f'{ours.name} {p}': [BINARY, 'translate', '--model', ours.model, '--dtype', p.replace('int8', 'i8'), LINE]
                for p in PRECISIONS}
    commands[f'{theirs.name} f32, with Python'] = theirs.program('f32', single, 1, HOME / 'one.json')
    seconds = {}
    for _ in range(runs):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    return {name: round(statistics.median(figures), 4) for name, figures in seconds.items()}


def bleu(ours, theirs, pieces, lines, reference):
    """BLEU of both engines in both precisions, each at its default search with this beam."""
    scores, single = {}, dict(workers=1, threads=1)
    for precision in PRECISIONS:
        evaluate = [BINARY, 'eval', '--reference', reference, '--format', 'json', '--resamples', 1]
        systems = [(ours.name, ['--input', lines, *ours.options(precision, single, 32)])]
        if precision in theirs.PRECISIONS:
            hypotheses = HOME / 'hypotheses.txt'
            results = theirs.translate(theirs.open(precision, single), theirs.sources, 32)
            hypotheses.write_text(''.join(pieces.decode(r.hypotheses[0]) + '\n' for r in results))
            systems.append((theirs.name, ['--hypotheses', hypotheses]))
        for name, source in systems:
            out = subprocess.run([str(part) for part in [*evaluate, *source]], check=True, stdout=subprocess.PIPE)
            scores[f'{name} {precision}'] = round(json.loads(out.stdout)['bleu']['score'], 2)
    return scores


def markdown(report):
    """The report as tables."""
    out = []
    for name, workload in report['workloads'].items():
        rows = {(r['batch'], r['precision'], r['engine']): r for r in workload['best']}
        engines = [e.name for e in (Beamfuse, CTranslate2, Transformers, Marian) if any(key[2] == e.name for key in rows)]
        out += [f'{name}:', '', f"| batch | | {' | '.join(engines)} | beamfuse : CTranslate2 |", '|---' * (len(engines) + 3) + '|']
        for batch, precision in sorted({key[:2] for key in rows}):
            cells = []
            for engine in engines:
                row = rows.get((batch, precision, engine))
                setting = row and row['setting']
                cells.append(f"{row['tokens_per_second']:,} ({setting['workers']} x {setting['threads']})" if row else '')
            ratio = rows[batch, precision, Beamfuse.name]['times_ctranslate2']
            out.append(f'| {batch} | {precision} | ' + ' | '.join(cells) + f' | {ratio:.2f} |')
        out.append('')
        out += [f'{key}: {workload[key]}' for key in ('peak_memory_mib', 'whole_process_seconds', 'bleu') if key in workload]
    return '\n'.join(out)


def machine():
    model = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
    return dict(cpu=model, path=cpu_path(), cores=os.cpu_count(), system=f'{platform.system()} {platform.machine()}', load=os.getloadavg()[0])


def cpu_path():
    """The instructions that beamfuse takes."""
    out = subprocess.run([str(BINARY), 'info'], check=True, stdout=subprocess.PIPE, text=True).stdout
    return next(line.split()[2].rstrip(',') for line in out.splitlines() if line.startswith('cpu path'))


def take_avx512():
    """Left to itself CTranslate2 takes AVX2 on AMD's processors, where AVX-512 is faster for it, too."""
    if 'avx512f' in open('/proc/cpuinfo').read():
        os.environ.setdefault('CT2_FORCE_CPU_ISA', 'AVX512')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--lines', type=pathlib.Path, required=True, help='source text, one sentence per line')
    parser.add_argument('--reference', type=pathlib.Path, help='its translation: adds BLEU')
    parser.add_argument('--peer', action='append', default=[], choices=['marian'], help='beside CTranslate2 and transformers')
    parser.add_argument('--without-transformers', action='store_true', help='which takes most of the time')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--sentences', type=int, default=1000, help='of the text, at batch 32; a fifth at batch 1')
    parser.add_argument('--output', type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    take_avx512()
    environment.enter()
    import sentencepiece
    pieces = sentencepiece.SentencePieceProcessor(str(arguments.model / 'source.spm'))
    target_pieces = sentencepiece.SentencePieceProcessor(str(arguments.model / 'target.spm'))
    lines = [l.rstrip('\n') for l in open(arguments.lines, encoding='utf8')]
    text = [pieces.encode(l, out_type=str) + ['</s>'] for l in lines if l.strip()]
    sources = HOME / 'sources.json'
    json.dump(text, open(sources, 'w'))
    opus = opus_shape(arguments.model)
    vocabulary = [p for p in json.load(open(opus / 'vocab.json')) if not p.startswith('<')]
    rng = random.Random(1)
    fixed = [[rng.choice(vocabulary) for _ in range(OPUS_LENGTH - 1)] + ['</s>'] for _ in range(64)]
    many = min(arguments.sentences, len(text))
    workloads = {
        arguments.model.name: (arguments.model, text, None, {1: max(1, many // 5), 32: many}),
        opus.name: (opus, fixed, OPUS_LENGTH, {1: 4, 32: 64}),
    }
    report = dict(command=sys.argv, machine=machine(), beam=BEAM, ctranslate2_isa=os.environ.get('CT2_FORCE_CPU_ISA'),
                  versions={p: importlib.metadata.version(p) for p in ('ctranslate2', 'transformers', 'torch')}, workloads={})
    for name, (model, sources_of, length, counts) in workloads.items():
        ours, theirs = Beamfuse(model, arguments.lines, length), CTranslate2(model, sources_of, length)
        engines = [ours, theirs]
        if not arguments.without_transformers:
            engines.append(Transformers(model, sources_of, length))
        if 'marian' in arguments.peer and length is None:
            engines.append(Marian(model, sources_of))
            report['versions'] |= environment.versions('pymarian')
        rows = measure(engines, counts, arguments.rounds)
        best = summarise(rows)
        workload = report['workloads'][name] = dict(length=length, sentences=counts, best=best)
        if length is None:
            workload['peak_memory_mib'] = memory(best, ours, theirs, arguments.lines, sources)
            workload['whole_process_seconds'] = whole_process(ours, theirs, sources)
            if arguments.reference:
                workload['bleu'] = bleu(ours, theirs, target_pieces, arguments.lines, arguments.reference)
        workload['rows'] = rows
        report['machine']['load_at_end'] = os.getloadavg()[0]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')
    print(markdown(report))


if __name__ == '__main__':
    main()
