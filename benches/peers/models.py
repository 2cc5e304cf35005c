#!/usr/bin/env python3
"""Holds what is read of a model directory to transformers 4.57: the same directory, the same tokens.

    cargo build --release
    python3 benches/peers/models.py TEXT.en [--lines 20] [--json FILE] [--only NAME,...]

Makes variants of the demo model, one directory each: every key of GenerationConfig with a value that is not its default, generation
configs as they are found, fine-tuned tokenizers and embeddings of other sizes, checkpoints in every form, a fresh model. Each is
searched by transformers' `generate`, a sentence at a time, and by `beamfuse translate --preset hf`; compared are the ids of the best
translation of each line. A variant that beamfuse refuses must be one that is meant to be, and the message must name the key. Ends
with 1 if anything else happens. The packages that are needed are installed as for presets.py.
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, warnings

import environment
from environment import ROOT

DEMO = ROOT / 'models' / 'm30k-en-de'
PAD, EOS, HUND = 8000, 0, 95

# A value that is not the default for every key of GenerationConfig; what else the file must say for it to matter.
KEYS = {
    'max_length': 9, 'max_new_tokens': 9, 'min_length': 14, 'min_new_tokens': 14, 'early_stopping': True, 'num_beams': 3,
    'repetition_penalty': 1.8, 'length_penalty': 0.2, 'no_repeat_ngram_size': 2, 'bad_words_ids': [[PAD], [HUND], [12, 23]],
    'renormalize_logits': True, 'forced_bos_token_id': HUND, 'forced_eos_token_id': None, 'suppress_tokens': [HUND, 12, 99999, -1],
    'use_cache': False, 'cache_implementation': 'static', 'cache_config': {'a': 1}, 'return_legacy_cache': True,
    'temperature': 0.3, 'top_k': 3, 'top_p': 0.5, 'min_p': 0.5, 'typical_p': 0.5, 'epsilon_cutoff': 0.1, 'eta_cutoff': 0.1,
    'remove_invalid_values': True, 'output_attentions': True, 'output_hidden_states': True, 'output_scores': True,
    'output_logits': True, 'return_dict_in_generate': True, 'pad_token_id': 7, 'bos_token_id': 7, 'is_assistant': True,
    'num_assistant_tokens': 5, 'num_assistant_tokens_schedule': 'heuristic', 'assistant_confidence_threshold': 0.2,
    'prompt_lookup_num_tokens': 3, 'max_matching_ngram_size': 2, 'assistant_early_exit': 1, 'assistant_lookbehind': 3,
    'target_lookbehind': 3, 'disable_compile': True, 'low_memory': True, 'diversity_penalty': 0.5, 'prefill_chunk_size': 8,
    'compile_config': {}, '_from_model_config': True, '_commit_hash': 'abc', 'transformers_version': '4.57.1',
}
# Asked for in vain, with the value to write named.
REFUSED = {
    'max_time': 100.0, 'stop_strings': ['.'], 'do_sample': True, 'encoder_repetition_penalty': 1.2,
    'exponential_decay_length_penalty': [3, 1.2], 'begin_suppress_tokens': [HUND], 'sequence_bias': [[[HUND], 1.0]],
    'token_healing': True, 'guidance_scale': 1.5, 'watermarking_config': {'bias': 2.5}, 'num_return_sequences': 2,
    'eos_token_id': [0, 12], 'encoder_no_repeat_ngram_size': 3, 'decoder_start_token_id': 3, 'num_beam_groups': 2,
    'constraints': [[HUND]], 'force_words_ids': [[HUND]],
}
REFUSED_GREEDY = {'penalty_alpha': 0.6, 'dola_layers': 'low'}

BASE = {'bad_words_ids': [[PAD]], 'decoder_start_token_id': PAD, 'eos_token_id': EOS, 'forced_eos_token_id': EOS,
        'max_length': 60, 'num_beams': 4, 'pad_token_id': PAD}


def without(*keys):
    return {k: v for k, v in BASE.items() if k not in keys}


# Generation configs as they are found; None: no such file.
FOUND = {
    'plain': BASE,
    'greedy': {**BASE, 'num_beams': 1},
    'no bad_words_ids': without('bad_words_ids'),
    'bad_words_ids null': {**BASE, 'bad_words_ids': None},
    'no forced_eos_token_id, short': {**without('forced_eos_token_id'), 'max_length': 8},
    'no forced_eos_token_id, short, greedy': {**without('forced_eos_token_id'), 'max_length': 8, 'num_beams': 1},
    'no forced_eos_token_id, too short for min_length': {**without('forced_eos_token_id'), 'max_length': 8, 'min_length': 30},
    'too short for min_length': {**BASE, 'max_length': 8, 'min_length': 30},
    'ids in lists': {**BASE, 'eos_token_id': [EOS], 'forced_eos_token_id': [EOS], 'forced_bos_token_id': [HUND]},
    'max_new_tokens': {**without('max_length'), 'max_new_tokens': 7},
    'max_new_tokens beside max_length': {**BASE, 'max_new_tokens': 7},
    'max_length 20': {**BASE, 'max_length': 20, 'min_length': 25},
    'no max_length': {**without('max_length'), 'min_length': 25},
    'no max_length, greedy, cut': {**without('max_length', 'forced_eos_token_id'), 'min_length': 25, 'num_beams': 1},
    'bos_token_id as start': {**without('decoder_start_token_id'), 'bos_token_id': PAD},
    'empty suppress_tokens': {**BASE, 'suppress_tokens': [], 'begin_suppress_tokens': []},
    'padding in suppress_tokens': {**without('bad_words_ids'), 'suppress_tokens': [PAD]},
    'no repeated n-gram, padding allowed': {**without('bad_words_ids'), 'no_repeat_ngram_size': 1},
    'penalty on repetition, padding allowed': {**without('bad_words_ids'), 'repetition_penalty': 1.5},
    'penalty on repetition, greedy': {**BASE, 'repetition_penalty': 1.5, 'num_beams': 1},
    'cut, early stopping never': {**without('forced_eos_token_id'), 'max_length': 9, 'early_stopping': 'never', 'length_penalty': 1.4},
    'cut, early stopping': {**without('forced_eos_token_id'), 'max_length': 9, 'early_stopping': True},
}


def link(directory, leave=()):
    """The demo model's files, but for some."""
    directory.mkdir(parents=True)
    for file in DEMO.iterdir():
        if file.is_file() and file.name not in leave:
            shutil.copy(file, directory / file.name)
    return directory


def write(directory, name, value):
    (directory / name).write_text(json.dumps(value))


def edit(directory, name, change):
    value = json.loads((directory / name).read_text())
    change(value)
    write(directory, name, value)


class Variants:
    """Makes the directories: name -> function of an empty path."""

    def __init__(self, torch, transformers):
        self.torch, self.t = torch, transformers
        self.all = {}
        for name, generation in FOUND.items():
            self.all[f'generation: {name}'] = lambda d, g=generation: write(link(d), 'generation_config.json', g)
        self.all['generation: in config.json'] = self.legacy
        for key, value in KEYS.items():
            self.all[f'key: {key}'] = lambda d, k=key, v=value: write(link(d), 'generation_config.json', {**BASE, k: v})
        self.all['sizes: added tokens'] = lambda d: self.tuned(d, tokens=['<brk>', 'Qx'])
        self.all['sizes: special added tokens'] = lambda d: self.tuned(d, special=['<sep>', '>>xyz<<'])
        self.all['sizes: added_tokens.json'] = self.older
        self.all['sizes: rows to a multiple of 64'] = lambda d: self.tuned(d, rows=8064)
        self.all['sizes: vocab.json with gaps'] = self.gaps
        self.all['sizes: a piece beyond the table'] = lambda d: edit(link(d), 'vocab.json', lambda v: v.update({'Zzz': 9000}))
        self.all['checkpoint: base model'] = self.base
        self.all['checkpoint: transposed'] = lambda d: self.saved(d, lambda w: w.t().contiguous().t() if w.dim() == 2 else w)
        self.all['checkpoint: strided'] = lambda d: self.saved(d, self.strided)
        self.all['checkpoint: before PyTorch 1.6'] = lambda d: self.saved(d, lambda w: w, _use_new_zipfile_serialization=False)
        self.all['checkpoint: f64'] = lambda d: self.saved(d, lambda w: w.double())
        self.all['checkpoint: parameters'] = lambda d: self.saved(d, lambda w: torch.nn.Parameter(w))
        self.all['fresh'] = lambda d: self.fresh(d)
        self.all['fresh, padding likely'] = lambda d: self.fresh(d, padding=0.5)

    def model(self):
        return self.t.MarianMTModel.from_pretrained(DEMO, dtype=self.torch.float32)

    def legacy(self, directory):
        link(directory, ['generation_config.json'])
        edit(directory, 'config.json', lambda c: c.update(num_beams=3, max_length=30, length_penalty=0.7, bad_words_ids=[[PAD]]))

    def tuned(self, directory, tokens=(), special=(), rows=None):
        tokenizer, model = self.t.MarianTokenizer.from_pretrained(DEMO), self.model()
        tokenizer.add_tokens(list(tokens))
        tokenizer.add_special_tokens({'additional_special_tokens': list(special)})
        self.torch.manual_seed(1)
        # Its pad_to_multiple_of leaves final_logits_bias behind, and the model does not load any more.
        model.resize_token_embeddings(rows or len(tokenizer), mean_resizing=False)
        # Spare rows as likely as any: they compete.
        model.final_logits_bias[0, 8001:] = 1.0
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    def older(self, directory):
        """As a version before 4.34 wrote it."""
        self.tuned(directory, tokens=['<brk>', 'Qx'])
        edit(directory, 'tokenizer_config.json', lambda c: c.pop('added_tokens_decoder'))
        write(directory, 'added_tokens.json', {'<brk>': 8001, 'Qx': 8002})

    def gaps(self, directory):
        edit(link(directory), 'vocab.json', lambda v: [v.pop(p) for p in list(v) if v[p] % 7 == 3 and v[p] > 2 and v[p] < 7000])

    def base(self, directory):
        link(directory, ['model.safetensors'])
        self.model().model.save_pretrained(directory / 'base')
        shutil.move(directory / 'base' / 'model.safetensors', directory)
        shutil.rmtree(directory / 'base')

    def strided(self, w):
        wide = self.torch.zeros(*w.shape, 2)
        wide[..., 0] = w
        return wide[..., 0]

    def saved(self, directory, change, **options):
        link(directory, ['model.safetensors'])
        state = {name: change(w.detach()) for name, w in self.model().state_dict().items()}
        self.torch.save(state, directory / 'pytorch_model.bin', **options)

    def fresh(self, directory, padding=None):
        self.torch.manual_seed(7)
        config = self.t.MarianConfig(vocab_size=8001, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                                     decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=PAD,
                                     decoder_start_token_id=PAD, max_position_embeddings=128, init_std=0.3)
        model = self.t.MarianMTModel(config)
        if padding is not None:
            model.final_logits_bias[0, PAD] = padding * 8
        model.save_pretrained(directory)
        for name in ('source.spm', 'target.spm', 'vocab.json', 'tokenizer_config.json'):
            shutil.copy(DEMO / name, directory)


def theirs(torch, t, directory, lines):
    """The ids of transformers' best translations, without the start token and what is filled behind."""
    tokenizer = t.AutoTokenizer.from_pretrained(directory)
    model = t.MarianMTModel.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for line in lines:
        inputs = tokenizer([line], return_tensors='pt')
        with torch.no_grad():
            out = model.generate(**inputs)
        out = out if torch.is_tensor(out) else out.sequences
        found.append(out[0].tolist()[1:])
    return found


def ours(binary, directory, lines):
    """The ids of beamfuse's best translations, or its message."""
    text = ''.join(json.dumps({'source': line}) + '\n' for line in lines)
    command = [str(binary), 'translate', '--model', str(directory), '--preset', 'hf', '--format', 'jsonl']
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf8')
    if done.returncode != 0:
        return None, done.stderr.strip()
    return [json.loads(line)['hypotheses'][0]['token_ids'] for line in done.stdout.splitlines()], done.stderr.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('text', type=pathlib.Path)
    parser.add_argument('--lines', type=int, default=20)
    parser.add_argument('--binary', type=pathlib.Path, default=ROOT / 'target' / 'release' / 'beamfuse')
    parser.add_argument('--json', type=pathlib.Path)
    parser.add_argument('--only', default='')
    arguments = parser.parse_args()
    environment.enter()
    import torch, transformers
    warnings.filterwarnings('ignore')
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get('THREADS', '2')))
    keys = set(transformers.GenerationConfig().__dict__)
    missing = keys - set(KEYS) - set(REFUSED) - set(REFUSED_GREEDY)
    assert not missing, f'keys of GenerationConfig without a case: {missing}'
    lines = arguments.text.read_text(encoding='utf8').splitlines()[:arguments.lines]
    lines += ['A dog <brk> runs Qx fast.', 'Qx <brk><brk> A man sleeps.', '>>xyz<< A dog runs.']
    rows, failed = [], 0

    def report(name, ok, note):
        nonlocal failed
        failed += not ok
        rows.append(dict(variant=name, ok=ok, note=note))
        print(f"{'ok ' if ok else 'BAD'} {name}: {note}", flush=True)

    wanted = [name for name in arguments.only.split(',') if name]
    chosen = lambda name: not wanted or any(name.startswith(part) for part in wanted)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        variants = Variants(torch, transformers)
        for number, (name, make) in enumerate(variants.all.items()):
            if not chosen(name):
                continue
            directory = scratch / str(number)
            make(directory)
            mine, message = ours(arguments.binary, directory, lines)
            try:
                expected = theirs(torch, transformers, directory, lines)
            except Exception as error:
                report(name, mine is not None, f'transformers refuses: {type(error).__name__}')
                continue
            same = mine is not None and sum(a == b for a, b in zip(expected, mine))
            report(name, mine is not None and same == len(lines), f'{same} of {len(lines)} lines the same' if mine is not None else message)
            if mine is not None and same < len(lines):
                at = next(i for i in range(len(lines)) if expected[i] != mine[i])
                print(f'    {lines[at]}\n    theirs {expected[at]}\n    ours   {mine[at]}')
            shutil.rmtree(directory)
        for beams, table in ((4, REFUSED), (1, REFUSED_GREEDY)):
            for key, value in table.items():
                name = f'refused: {key}'
                if not chosen(name):
                    continue
                directory = scratch / key
                write(link(directory), 'generation_config.json', {**BASE, 'num_beams': beams, key: value})
                mine, message = ours(arguments.binary, directory, lines[:1])
                report(name, mine is None and f'{key} = ' in message and '(write ' in message, message or 'taken')
                shutil.rmtree(directory)
    if arguments.json:
        versions = environment.versions('transformers', 'torch')
        value = dict(command='python3 benches/peers/models.py ' + ' '.join(sys.argv[1:]), lines=len(lines), versions=versions, variants=rows)
        arguments.json.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n')
    print(f'{len(rows) - failed} of {len(rows)} as they should be')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
