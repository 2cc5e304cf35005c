"""transformers beside the preset `hf`."""
import json

import environment


class Transformers:
    """`generate` in f32. It pads sentences of a batch, which changes bits, so that lines of one length go together."""
    preset = 'hf'
    # Name, arguments of generate, flags of beamfuse.
    settings = [
        ('greedy', dict(num_beams=1), ['--beam-size', 1]),
        ('beam 2', dict(num_beams=2), ['--beam-size', 2]),
        ('beam 4', dict(num_beams=4), []),
        ('beam 5, early stopping, length penalty 0.6', dict(num_beams=5, early_stopping=True, length_penalty=0.6),
         ['--beam-size', 5, '--stop', 'first', '--alpha', 0.6]),
        ('beam 4, early stopping "never", length penalty 1.2', dict(num_beams=4, early_stopping='never', length_penalty=1.2),
         ['--stop', 'exact', '--alpha', 1.2]),
        ('beam 4, length penalty 0', dict(num_beams=4, length_penalty=0.0), ['--alpha', 0]),
        ('beam 4, 12 tokens at most', dict(num_beams=4, max_length=13), ['--max-length', 12]),
        ('beam 4, 14 tokens at least', dict(num_beams=4, min_length=14), ['--min-length', 14]),
        ('beam 4, no bigram twice', dict(num_beams=4, no_repeat_ngram_size=2), ['--no-repeat-ngram', 2]),
        ('beam 4, repetition penalty 1.3', dict(num_beams=4, repetition_penalty=1.3), ['--repetition-penalty', 1.3]),
        ('greedy, repetition penalty 1.3', dict(num_beams=1, repetition_penalty=1.3),
         ['--beam-size', 1, '--repetition-penalty', 1.3]),
        # 95 is ▁Hund in the demo model.
        ('greedy, forced first token', dict(num_beams=1, forced_bos_token_id=95), ['--beam-size', 1, '--forced-bos', '▁Hund']),
        ('beam 4, forced first token', dict(num_beams=4, forced_bos_token_id=95), ['--forced-bos', '▁Hund']),
        ('beam 4, renormalized', dict(num_beams=4, renormalize_logits=True), ['--renormalize']),
    ]

    def __init__(self, model, pieces):
        import torch
        from transformers import MarianMTModel
        self.torch, self.model, self.engine = torch, model, MarianMTModel.from_pretrained(model).float().eval()
        vocab = json.load(open(model / 'vocab.json'))
        self.names = {i: p for p, i in vocab.items()}
        self.sources = [[vocab.get(p, vocab['<unk>']) for p in s] for s in pieces]

    def versions(self):
        return environment.versions('transformers', 'torch')

    def search(self, arguments):
        torch, pad = self.torch, self.engine.config.pad_token_id
        beams = arguments['num_beams']
        results = [None] * len(self.sources)
        by_length = {}
        for i, source in enumerate(self.sources):
            by_length.setdefault(len(source), []).append(i)
        for lines in by_length.values():
            for at in range(0, len(lines), 32):
                part = lines[at:at + 32]
                ids = torch.tensor([self.sources[i] for i in part])
                with torch.no_grad():
                    out = self.engine.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=beams,
                                              return_dict_in_generate=True, output_scores=beams > 1, **arguments)
                scores = out.sequences_scores.tolist() if beams > 1 else [None] * len(part)
                # The start token stands in front, and is the padding at the end too.
                tokens = [[self.names[t] for t in row[1:] if t != pad] for row in out.sequences.tolist()]
                for j, i in enumerate(part):
                    results[i] = list(zip(tokens[j * beams:(j + 1) * beams], scores[j * beams:(j + 1) * beams]))
        return results
