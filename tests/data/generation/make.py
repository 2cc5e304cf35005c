"""Makes this directory's model and what transformers' `generate` finds with it under generation configs as they are found.

Needs torch and transformers 4.57.1 (made with torch 2.9). Run it here; the tokenizer is the demo model's.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

HERE = Path(__file__).parent
DEMO = HERE.parents[2] / "models" / "m30k-en-de"
PAD, EOS, START = 8000, 0, 8000

torch.manual_seed(11)
torch.set_num_threads(1)
config = MarianConfig(
    vocab_size=8001, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=12, decoder_ffn_dim=12, max_position_embeddings=48, pad_token_id=PAD, decoder_start_token_id=START,
    init_std=1.0, scale_embedding=False,
)
model = MarianMTModel(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())
    # Few tokens, so that n-grams repeat; padding and the end of sentence among the likely ones.
    model.final_logits_bias[0, 60:] -= 30
    model.final_logits_bias[0, PAD] = 6
    model.final_logits_bias[0, EOS] = 4
    model.final_logits_bias.copy_(model.final_logits_bias.half().float())
model.half().save_pretrained(HERE)
(HERE / "generation_config.json").unlink()

base = dict(decoder_start_token_id=START, eos_token_id=EOS, pad_token_id=PAD)
ends = dict(base, forced_eos_token_id=EOS)
banned = dict(bad_words_ids=[[PAD]])
CONFIGS = {
    "fresh": ends,
    "beams": dict(ends, num_beams=4, max_length=16),
    "beams, padding banned": dict(ends, **banned, num_beams=4, max_length=16),
    "cut": dict(base, num_beams=4, max_length=9),
    "cut, greedy": dict(base, max_length=9),
    "cut, early stopping": dict(base, num_beams=3, max_length=12, early_stopping=True, length_penalty=0.4),
    "cut, early stopping never": dict(base, num_beams=3, max_length=12, early_stopping="never", length_penalty=1.6),
    "cut before an end may come": dict(base, **banned, num_beams=3, max_length=7, min_length=20),
    "new tokens": dict(ends, num_beams=2, max_new_tokens=6, min_new_tokens=4),
    "no bigram twice": dict(ends, num_beams=4, max_length=20, no_repeat_ngram_size=2, min_length=12),
    "no token twice": dict(ends, num_beams=4, max_length=20, no_repeat_ngram_size=1, min_length=8),
    "no token twice, greedy": dict(ends, max_length=20, no_repeat_ngram_size=1, min_length=8),
    "repetition penalty": dict(ends, num_beams=4, max_length=16, repetition_penalty=1.6, min_length=6),
    "repetition penalty, greedy": dict(ends, max_length=16, repetition_penalty=1.6, min_length=6),
    "renormalized": dict(ends, **banned, num_beams=4, max_length=16, renormalize_logits=True),
    "padding suppressed": dict(ends, num_beams=3, max_length=16, suppress_tokens=[PAD, 5, 9000]),
    "first token": dict(base, num_beams=3, max_length=10, forced_bos_token_id=[7]),
}
lines = (HERE.parent / "own" / "own.en").read_text(encoding="utf8").splitlines()[:16]
tokenizer = MarianTokenizer.from_pretrained(DEMO)
expected = []
with torch.no_grad():
    for name, settings in CONFIGS.items():
        kept = []
        for line in lines:
            inputs = tokenizer([line], return_tensors="pt")
            found = []
            for dtype in (torch.float32, torch.float64):
                engine = model.to(dtype)
                engine.generation_config = GenerationConfig(**settings)
                found.append(engine.generate(**inputs)[0].tolist()[1:])
            # Where precision decides, nothing can be held to it.
            if found[0] == found[1]:
                kept.append({"source": line, "token_ids": found[0]})
        kept = kept[:6]
        assert len(kept) == 6, (name, len(kept))
        expected.append({"name": name, "generation": settings, "lines": kept})
        print(name, [len(k["token_ids"]) for k in kept], sum(PAD in k["token_ids"] for k in kept))
(HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
