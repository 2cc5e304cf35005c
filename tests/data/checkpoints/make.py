"""Makes the checkpoints of this directory: one tiny Marian model with random weights, saved in every form.

Needs torch and transformers (made with 2.9.0 and 4.57.1). Run it here.
"""

import shutil
from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel

HERE = Path(__file__).parent

torch.manual_seed(20)
config = MarianConfig(
    vocab_size=13, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=6, decoder_ffn_dim=10, max_position_embeddings=8, pad_token_id=12, decoder_start_token_id=12,
    eos_token_id=0, bos_token_id=None, forced_eos_token_id=0, static_position_embeddings=True, scale_embedding=True,
    activation_function="swish",
)
model = MarianMTModel(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        # Representable in f16, so that every form holds the same numbers; biases and gains that are not 0 and 1.
        parameter.copy_((torch.randn_like(parameter) / 4).half().float())
    model.final_logits_bias.copy_(torch.randn(1, config.vocab_size).half())


def directory(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    config.save_pretrained(path)
    return path


def keep_weights(path):
    """The configuration stands in `safetensors` once."""
    for file in path.iterdir():
        if not file.name.startswith("pytorch_model"):
            file.unlink()


model.save_pretrained(directory("safetensors"))
(HERE / "safetensors" / "generation_config.json").unlink(missing_ok=True)

model.save_pretrained(directory("zip"), safe_serialization=False)
torch.save(model.state_dict(), directory("legacy") / "pytorch_model.bin", _use_new_zipfile_serialization=False)

model.half().save_pretrained(directory("sharded"), safe_serialization=False, max_shard_size="1KB")
for name in ["zip", "legacy", "sharded"]:
    keep_weights(HERE / name)
