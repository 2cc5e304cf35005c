"""Marian, as `pymarian` from PyPI, beside the preset `marian`.

Its own kind of model is made of the checkpoint here. Marian computes its table of positions itself, and not as transformers does: the
exponents of the wavelengths run in steps of 1 / (d/2 - 1) there and of 1 / (d/2) here. So that both engines compute the same model,
beamfuse gets a copy of the checkpoint that carries Marian's table.
"""
import json, shutil

import environment
from environment import HOME

REQUIREMENT = 'pymarian==1.12.42'
ATTENTION = dict(self_attn='self', encoder_attn='context')
PROJECTION = dict(q_proj='q', k_proj='k', v_proj='v', out_proj='o')


def name_in_marian(name):
    """What Marian calls a tensor, and whether it stands there transposed."""
    if name == 'final_logits_bias':
        return 'decoder_ff_logit_out_b', False
    if name == 'model.shared.weight':
        return 'Wemb', False
    side, _, layer, *rest = name.removeprefix('model.').split('.')
    front = f'{side}_l{int(layer) + 1}_'
    block, kind = '.'.join(rest[:-1]), rest[-1]
    if block == 'final_layer_norm':
        return f"{front}ffn_ffn_ln_{'scale' if kind == 'weight' else 'bias'}", False
    if block.endswith('_layer_norm'):
        attention = ATTENTION[block.removesuffix('_layer_norm')]
        return f"{front}{attention}_Wo_ln_{'scale' if kind == 'weight' else 'bias'}", False
    letter = 'W' if kind == 'weight' else 'b'
    if block in ('fc1', 'fc2'):
        return f'{front}ffn_{letter}{block[-1]}', kind == 'weight'
    attention, projection = block.split('.')
    return f'{front}{ATTENTION[attention]}_{letter}{PROJECTION[projection]}', kind == 'weight'


def model_yml(config, pieces):
    """The options that Marian reads out of a model file."""
    import pymarian, yaml
    return yaml.safe_dump({
        'version': f'v{pymarian.__version__}', 'type': 'transformer', 'dim-emb': config['d_model'], 'dim-vocabs': [pieces, pieces],
        'enc-depth': config['encoder_layers'], 'dec-depth': config['decoder_layers'], 'tied-embeddings-all': True,
        'transformer-heads': config['encoder_attention_heads'], 'transformer-dim-ffn': config['encoder_ffn_dim'],
        'transformer-decoder-dim-ffn': config['decoder_ffn_dim'], 'transformer-ffn-activation': config['activation_function'],
        'transformer-preprocess': '', 'transformer-postprocess': 'dan', 'transformer-postprocess-emb': 'd',
    })


def marian_positions(length, width):
    import numpy
    rates = numpy.exp(numpy.arange(width // 2) * -(numpy.log(10000) / (width // 2 - 1)))
    angles = numpy.arange(length)[:, None] * rates
    return numpy.concatenate([numpy.sin(angles), numpy.cos(angles)], axis=1).astype(numpy.float32)


def convert(model, directory):
    """Writes the model for Marian, and `checkpoint`, the same in f32 with Marian's positions."""
    import numpy
    from safetensors.numpy import load_file, save_file
    config, vocab = json.load(open(model / 'config.json')), json.load(open(model / 'vocab.json'))
    tensors = {name: tensor.astype(numpy.float32) for name, tensor in load_file(model / 'model.safetensors').items()}
    pad = config['pad_token_id']
    # Marian has no padding token and starts from an embedding of zero.
    if pad != len(vocab) - 1 or tensors['model.shared.weight'][pad].any() or config['normalize_embedding']:
        raise SystemExit(f'{model}: expected a padding token that stands last and has a zero embedding, and no norm behind embeddings')
    (directory / 'checkpoint').mkdir(parents=True, exist_ok=True)
    for name in ('config.json', 'generation_config.json', 'source.spm', 'target.spm', 'vocab.json', 'tokenizer_config.json'):
        shutil.copy(model / name, directory / 'checkpoint' / name)
    table = marian_positions(config['max_position_embeddings'], config['d_model'])
    positions = {f'model.{side}.embed_positions.weight': table for side in ('encoder', 'decoder')}
    save_file(tensors | positions, directory / 'checkpoint' / 'model.safetensors')
    weights = {'special:model.yml': numpy.frombuffer(model_yml(config, pad).encode() + b'\0', dtype=numpy.int8)}
    for name, tensor in tensors.items():
        to, transposed = name_in_marian(name)
        tensor = tensor[:pad] if to == 'Wemb' else tensor[:, :pad] if to.endswith('logit_out_b') else tensor
        weights[to] = numpy.ascontiguousarray(tensor.T if transposed else numpy.atleast_2d(tensor))
    numpy.savez(directory / 'model.npz', **weights)
    quoted = (f'{json.dumps(piece, ensure_ascii=False)}: {i}\n' for piece, i in vocab.items() if i != pad)
    (directory / 'vocab.yml').write_text(''.join(quoted), encoding='utf8')


def converted(model):
    """The directory of the model for Marian, made on first use."""
    directory = HOME / ('marian-' + model.name)
    if not (directory / 'vocab.yml').exists():
        convert(model, directory)
    return directory


def open_engine(directory, **options):
    import pymarian
    return pymarian.Translator(models=str(directory / 'model.npz'), vocabs=[str(directory / 'vocab.yml')] * 2, quiet=True,
                               quiet_translation=True, **options)


class Marian:
    preset = 'marian'
    # Of sums over a sentence: its layer norm adds 1e-6 to the variance where that of transformers and beamfuse adds 1e-5.
    score_tolerance = 1e-3
    # The end of sentence is not among its tokens.
    shows_end = False
    # Name, options of marian-decoder, flags of beamfuse.
    settings = [
        ('beam 12, its own default', dict(beam_size=12), []),
        ('greedy', dict(beam_size=1), ['--beam-size', 1]),
        ('beam 2', dict(beam_size=2), ['--beam-size', 2]),
        ('beam 4', dict(beam_size=4), ['--beam-size', 4]),
        ('beam 6, normalize 0.6', dict(beam_size=6, normalize=0.6), ['--beam-size', 6, '--alpha', 0.6]),
        ('beam 12, normalize 1', dict(beam_size=12, normalize=1.0), ['--alpha', 1]),
        ('beam 6, word penalty 0.4', dict(beam_size=6, word_penalty=0.4), ['--beam-size', 6, '--word-reward', -0.4]),
        ('beam 6, normalize 1, word penalty -0.5', dict(beam_size=6, normalize=1.0, word_penalty=-0.5),
         ['--beam-size', 6, '--alpha', 1, '--word-reward', 0.5]),
        # A factor that is no whole number would be rounded up there, and down here.
        ('beam 4, no more tokens than the source', dict(beam_size=4, max_length_factor=1.0), ['--beam-size', 4, '--max-length', '1*S']),
        ('greedy, no more tokens than the source', dict(beam_size=1, max_length_factor=1.0), ['--beam-size', 1, '--max-length', '1*S']),
        ('beam 6, behind a prefix', dict(beam_size=6, prefix='Der Mann'), ['--beam-size', 6]),
    ]

    def __init__(self, model, pieces):
        environment.need('pymarian', REQUIREMENT)
        import sentencepiece
        self.target = sentencepiece.SentencePieceProcessor(str(model / 'target.spm'))
        self.directory = converted(model)
        self.model, self.sources = self.directory / 'checkpoint', [' '.join(source[:-1]) for source in pieces]

    def versions(self):
        return environment.versions('pymarian')

    def search(self, options):
        prefix = ' '.join(self.target.encode(options.get('prefix', ''), out_type=str))
        forced = dict(force_decode=True, tsv=True, tsv_fields=2) if prefix else {}
        rest = {name: value for name, value in options.items() if name != 'prefix'}
        # Its limit of length follows the longest source of a batch: one sentence each.
        engine = open_engine(self.directory, cpu_threads=1, n_best=True, mini_batch=1, maxi_batch=1, **forced, **rest)
        results = [[] for _ in self.sources]
        for line in engine.translate([f'{source}\t{prefix}' if prefix else source for source in self.sources]):
            number, rest = line.split(' ||| ', 1)
            tokens, _, score = rest.rsplit(' ||| ', 2)
            # Its scores count a prefix, which costs nothing here.
            results[int(number)].append((tokens.split(), None if prefix else float(score)))
        return results
