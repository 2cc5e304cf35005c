#!/usr/bin/env python3
"""Times one training step of beamfuse against the same step in PyTorch, on this machine's CPU, in one run.

    cargo build --release
    python3 benches/peers/train.py --data TEXT.tsv

The step: teacher forcing with label smoothing 0.1 and dropout 0.1 over batches of at most --batch-tokens tokens a side, gradient
clipping, AdamW; in f32. Both sides draw their batches at random from the same pairs. PyTorch runs transformers' MarianMTModel and
pads each batch; sentences of similar length are put together for it, which is to its advantage. The two take turns. What is compared
is seconds for each target token, the median over steps without the first three of each turn.
"""
import argparse, json, os, pathlib, platform, random, shutil, statistics, subprocess, sys, tempfile, time

import environment
from environment import ROOT

BINARY = ROOT / 'target' / 'release' / 'beamfuse'
WARMUP = 3


def beamfuse(arguments, directory):
    """Seconds per target token of each step, from the run's log."""
    output = pathlib.Path(directory) / 'ours'
    shutil.rmtree(output, ignore_errors=True)
    command = [BINARY, 'train', '--model', arguments.model, '--data', arguments.data, '--output', output, '--objective', 'mle',
               '--updates', arguments.steps, '--batch-tokens', arguments.batch_tokens, '--keep', 'last', '--log-every', 1000000]
    subprocess.run([str(word) for word in command], check=True, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in open(output / 'training' / 'log.jsonl')]
    return [line['seconds'] / line['tokens'] for line in lines if 'seconds' in line][WARMUP:]


class PyTorch:
    def __init__(self, arguments):
        import torch
        from transformers import MarianMTModel, MarianTokenizer
        torch.set_num_threads(arguments.threads)
        self.torch, self.arguments = torch, arguments
        self.model = MarianMTModel.from_pretrained(arguments.model, dtype=torch.float32)
        self.model.train()
        tokenizer = MarianTokenizer.from_pretrained(arguments.model)
        pairs = [line.rstrip('\n').split('\t') for line in open(arguments.data, encoding='utf-8')]
        sources = tokenizer([source for source, _ in pairs])['input_ids']
        targets = tokenizer(text_target=[target for _, target in pairs])['input_ids']
        self.batches = self.cut(list(zip(sources, targets)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)

    def cut(self, pairs):
        random.Random(1).shuffle(pairs)
        # Pools of some thousand pairs, sorted by length: little padding.
        pairs = [pair for start in range(0, len(pairs), 4096)
                 for pair in sorted(pairs[start:start + 4096], key=lambda p: (len(p[1]), len(p[0])))]
        batches, batch, used = [], [], [0, 0]
        for pair in pairs:
            if batch and any(used[side] + len(pair[side]) > self.arguments.batch_tokens for side in (0, 1)):
                batches.append(batch)
                batch, used = [], [0, 0]
            batch.append(pair)
            used = [used[side] + len(pair[side]) for side in (0, 1)]
        random.Random(2).shuffle(batches)
        return batches

    def padded(self, rows, value):
        width = max(map(len, rows))
        return self.torch.tensor([row + [value] * (width - len(row)) for row in rows])

    def step(self, batch):
        torch, pad = self.torch, self.model.config.pad_token_id
        source = self.padded([s for s, _ in batch], pad)
        target = self.padded([t for _, t in batch], pad)
        inputs = torch.cat([torch.full((len(batch), 1), self.model.config.decoder_start_token_id), target[:, :-1]], 1)
        logits = self.model(input_ids=source, attention_mask=(source != pad).long(), decoder_input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=pad, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def run(self):
        times = []
        for batch in random.sample(self.batches, self.arguments.steps):
            started = time.perf_counter()
            self.step(batch)
            times.append((time.perf_counter() - started) / sum(len(target) for _, target in batch))
        return times[WARMUP:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='lines of source TAB target')
    parser.add_argument('--model', default=str(ROOT / 'models' / 'm30k-en-de'))
    parser.add_argument('--batch-tokens', type=int, default=1024)
    parser.add_argument('--steps', type=int, default=15, help='steps of one turn')
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--output', help='JSON file for the figures')
    arguments = parser.parse_args()
    environment.enter()
    os.environ['RAYON_NUM_THREADS'] = str(arguments.threads)
    torch, ours, theirs = PyTorch(arguments), [], []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(arguments.turns):
            ours += beamfuse(arguments, directory)
            theirs += torch.run()
    figures = {name: statistics.median(times) * 1e3 for name, times in (('beamfuse', ours), ('pytorch', theirs))}
    for name, value in figures.items():
        print(f'{name:10} {value:.3f} ms per target token')
    print(f'ratio      {figures["beamfuse"] / figures["pytorch"]:.2f}')
    if arguments.output:
        record = dict(figures, ratio=figures['beamfuse'] / figures['pytorch'], machine=platform.processor() or platform.machine(),
                      threads=arguments.threads, batch_tokens=arguments.batch_tokens, steps=len(ours),
                      torch=torch.torch.__version__, command=' '.join(sys.argv))
        pathlib.Path(arguments.output).write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main()
