"""CTranslate2 beside the preset `ctranslate2`."""
import shutil

import environment
from environment import HOME


def in_f32(model):
    """A copy in f32: converted from f16, CTranslate2 would round its table of positions to f16, too."""
    from transformers import MarianMTModel
    copy = HOME / ('f32-' + model.name)
    copy.mkdir(parents=True, exist_ok=True)
    for name in ('source.spm', 'target.spm', 'vocab.json', 'tokenizer_config.json'):
        if (model / name).exists():
            shutil.copy(model / name, copy / name)
    MarianMTModel.from_pretrained(model).float().save_pretrained(copy)
    return copy


class CTranslate2:
    preset = 'ctranslate2'
    # Name, arguments of translate_batch, flags of beamfuse.
    settings = [
        ('greedy', dict(beam_size=1), ['--beam-size', 1]),
        ('beam 2', dict(beam_size=2), ['--beam-size', 2]),
        ('beam 4', dict(beam_size=4), ['--beam-size', 4]),
        ('beam 5', dict(beam_size=5), ['--beam-size', 5]),
        ('beam 4, length penalty 0.6', dict(beam_size=4, length_penalty=0.6), ['--beam-size', 4, '--alpha', 0.6]),
        ('beam 4, no penalty', dict(beam_size=4, length_penalty=0), ['--beam-size', 4, '--alpha', 0]),
        ('beam 4, patience 2', dict(beam_size=4, patience=2), ['--beam-size', 4, '--patience', 2]),
        ('beam 4, 12 tokens at most', dict(beam_size=4, max_decoding_length=12), ['--beam-size', 4, '--max-length', 12]),
        # It counts without the end of sentence here.
        ('beam 4, 14 tokens at least', dict(beam_size=4, min_decoding_length=13), ['--beam-size', 4, '--min-length', 14]),
        ('beam 4, no bigram twice', dict(beam_size=4, no_repeat_ngram_size=2), ['--beam-size', 4, '--no-repeat-ngram', 2]),
        ('beam 4, repetition penalty 1.3', dict(beam_size=4, repetition_penalty=1.3), ['--beam-size', 4, '--repetition-penalty', 1.3]),
        # It searches on behind the prefix as if there were none: under a length penalty other hypotheses win there.
        ('greedy, 5 alternatives', dict(beam_size=1, alternatives=5), ['--beam-size', 1, '--alternatives', 5]),
        ('beam 4, no penalty, 5 alternatives', dict(beam_size=4, length_penalty=0, alternatives=5),
         ['--beam-size', 4, '--alpha', 0, '--alternatives', 5]),
    ]

    def __init__(self, model, pieces):
        import ctranslate2, sentencepiece
        from ctranslate2.converters import TransformersConverter
        directory = HOME / ('ct2-f32-' + model.name)
        if not directory.exists():
            TransformersConverter(str(in_f32(model))).convert(str(directory))
        self.engine = ctranslate2.Translator(str(directory), compute_type='float32', inter_threads=1, intra_threads=1)
        self.target = sentencepiece.SentencePieceProcessor(str(model / 'target.spm'))
        self.model, self.sources = model, pieces

    def versions(self):
        return environment.versions('ctranslate2')

    def search(self, arguments):
        limits = dict(return_scores=True, return_end_token=True, max_batch_size=32)
        if 'alternatives' not in arguments:
            found = self.engine.translate_batch(self.sources, num_hypotheses=arguments['beam_size'], **limits, **arguments)
            return [list(zip(result.hypotheses, result.scores)) for result in found]
        count = arguments['alternatives']
        rest = {name: value for name, value in arguments.items() if name != 'alternatives'}
        prefixes = [self.target.encode(prefix, out_type=str) for prefix in self.prefixes()]
        found = self.engine.translate_batch(self.sources, prefixes, num_hypotheses=count, return_alternatives=True, **limits, **rest)
        # Its scores leave the prefix out.
        return [[(tokens, None) for tokens in result.hypotheses] for result in found]

    def prefixes(self):
        """The first word of each line's translation, if it is one piece. Of a longer prefix in front of alternatives its Marian
        decoder zeroes all embeddings but the last, where it means the start token's alone."""
        found = self.engine.translate_batch(self.sources, beam_size=1, max_batch_size=32)
        words = [self.target.decode(result.hypotheses[0]).split()[:1] for result in found]
        return [word[0] if word and len(self.target.encode(word[0])) == 1 else '' for word in words]
