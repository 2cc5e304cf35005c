"""fairseq beside the preset `fairseq`.

What runs is fairseq's own `SequenceGenerator`, out of the source package on PyPI. The package as a whole cannot be imported by Python
3.11 and later, so that four of its files are taken and the modules that they import for other purposes stand in as empty ones. The
model is transformers', behind the interface that the generator expects.
"""
import hashlib, importlib, io, json, sys, tarfile, types, urllib.request

import environment
from environment import HOME

VERSION = '0.12.2'
SOURCE = ('https://files.pythonhosted.org/packages/30/36/db42846570f479ac859be3b48d8b47f2ae9b0b9c77487a512f2f2ecbcb6b/'
          f'fairseq-{VERSION}.tar.gz')
SHA256 = '34f1b18426bf3844714534162f065ab733e049597476daa35fffb4d06a92b524'
FILES = ['sequence_generator.py', 'search.py', 'ngram_repeat_block.py', 'token_generation_constraints.py']


def sequence_generator():
    """fairseq's class of that name."""
    directory = HOME / f'fairseq-{VERSION}' / 'fairseq'
    if not all((directory / name).exists() for name in FILES):
        package = urllib.request.urlopen(SOURCE, timeout=180).read()
        if hashlib.sha256(package).hexdigest() != SHA256:
            sys.exit(f'{SOURCE}: not the file that was expected')
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            for name in FILES:
                (directory / name).write_bytes(archive.extractfile(f'fairseq-{VERSION}/fairseq/{name}').read())
    for name in ('fairseq', 'fairseq.utils', 'fairseq.data', 'fairseq.data.data_utils', 'fairseq.models'):
        sys.modules[name] = types.ModuleType(name)
    sys.modules['fairseq'].__path__ = [str(directory)]
    sys.modules['fairseq'].utils = sys.modules['fairseq.utils']
    sys.modules['fairseq.data'].data_utils = sys.modules['fairseq.data.data_utils']
    sys.modules['fairseq.models'].FairseqIncrementalDecoder = type('FairseqIncrementalDecoder', (), {})
    return importlib.import_module('fairseq.sequence_generator').SequenceGenerator


def wrapped(marian):
    """A MarianMTModel as the generator asks for models; sources of a batch are equally long."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class Encoder(torch.nn.Module):
        def forward_torchscript(self, net_input):
            return marian.model.encoder(net_input['src_tokens']).last_hidden_state

        def reorder_encoder_out(self, states, order):
            return states.index_select(0, order)

    class Decoder(torch.nn.Module, sys.modules['fairseq.models'].FairseqIncrementalDecoder):
        def forward(self, tokens, encoder_out, incremental_state):
            cache = incremental_state.setdefault('cache', EncoderDecoderCache(DynamicCache(), DynamicCache()))
            states = marian.model.decoder(tokens[:, -1:], encoder_hidden_states=encoder_out, past_key_values=cache, use_cache=True)
            return marian.lm_head(states.last_hidden_state) + marian.final_logits_bias, None

        def reorder_incremental_state_scripting(self, incremental_state, order):
            incremental_state['cache'].reorder_cache(order)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Encoder(), Decoder()

        def max_decoder_positions(self):
            return marian.config.max_position_embeddings

        def get_normalized_probs(self, output, log_probs, sample):
            return torch.log_softmax(output[0], dim=-1)

    return Model()


class Dictionary:
    def __init__(self, config, vocab):
        self.ids = dict(pad=config.pad_token_id, eos=config.eos_token_id, unk=vocab['<unk>'])
        self.size = config.vocab_size

    def __len__(self):
        return self.size

    def __getattr__(self, name):
        return lambda: self.ids[name]


class Fairseq:
    preset = 'fairseq'
    # Name, arguments of SequenceGenerator, flags of beamfuse.
    settings = [
        ('beam 5, its own default', dict(beam_size=5), []),
        ('greedy', dict(beam_size=1), ['--beam-size', 1]),
        ('beam 2', dict(beam_size=2), ['--beam-size', 2]),
        ('beam 12', dict(beam_size=12), ['--beam-size', 12]),
        ('beam 5, length penalty 0.6', dict(beam_size=5, len_penalty=0.6), ['--alpha', 0.6]),
        ('beam 5, length penalty 1.4', dict(beam_size=5, len_penalty=1.4), ['--alpha', 1.4]),
        ('beam 5, not normalized', dict(beam_size=5, normalize_scores=False), ['--alpha', 0]),
        # Here the end of sentence counts.
        ('beam 5, 14 tokens at least', dict(beam_size=5, min_len=13), ['--min-length', 14]),
        ('beam 5, 12 tokens at most', dict(beam_size=5, max_len_b=11), ['--max-length', 12]),
        ('beam 5, no more tokens than the source', dict(beam_size=5, max_len_a=1, max_len_b=-1), ['--max-length', '1*S']),
        ('beam 5, behind a prefix', dict(beam_size=5, prefix='Der Mann'), []),
        # Off the GPU its rule compares with the padding at the end of its table of tokens, and bans nothing.
        ('beam 5, no_repeat_ngram_size 3, without effect', dict(beam_size=5, no_repeat_ngram_size=3), []),
    ]

    def __init__(self, model, pieces):
        import sentencepiece, torch
        from transformers import MarianMTModel
        self.generator_class, self.torch, self.model = sequence_generator(), torch, model
        marian = MarianMTModel.from_pretrained(model).float().eval()
        self.vocab, self.start = json.load(open(model / 'vocab.json')), marian.config.decoder_start_token_id
        self.names = {i: piece for piece, i in self.vocab.items()}
        self.engine, self.dictionary = wrapped(marian), Dictionary(marian.config, self.vocab)
        self.target = sentencepiece.SentencePieceProcessor(str(model / 'target.spm'))
        self.sources = [[self.vocab.get(p, self.vocab['<unk>']) for p in source] for source in pieces]

    def versions(self):
        return environment.versions('transformers', 'torch') | dict(fairseq=VERSION)

    def search(self, arguments):
        torch = self.torch
        prefix = [self.vocab[piece] for piece in self.target.encode(arguments.get('prefix', ''), out_type=str)]
        rest = {name: value for name, value in arguments.items() if name != 'prefix'}
        generator = self.generator_class([self.engine], self.dictionary, **rest)
        results, by_length = [None] * len(self.sources), {}
        for i, source in enumerate(self.sources):
            by_length.setdefault(len(source), []).append(i)
        for lines in by_length.values():
            for at in range(0, len(lines), 16):
                part = lines[at:at + 16]
                sample = {'net_input': {'src_tokens': torch.tensor([self.sources[i] for i in part])}}
                prefixes = torch.tensor([prefix] * len(part)) if prefix else None
                for i, found in zip(part, generator.generate(None, sample, prefix_tokens=prefixes, bos_token=self.start)):
                    results[i] = [([self.names[t] for t in h['tokens'].tolist()], float(h['score'])) for h in found]
        return results
