#!/usr/bin/env python3
"""Writes a model of the size of OPUS-MT base with random weights, for measurements of speed. Needs the standard library alone.

    gpu_model.py TOKENIZER_DIR OUTPUT_DIR [WIDTH FFN LAYERS HEADS VOCABULARY]

The tokenizer is copied from TOKENIZER_DIR (a Marian model, as models/m30k-en-de); its vocabulary is cut, or filled up with entries that
no text contains. The weights are the same on every machine.
"""

import array
import json
import pathlib
import random
import shutil
import struct
import sys

SEED = 1
BLOCK = 65_537  # a prime: tensors start at different places of the block


def main():
    tokenizer, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    width, ffn, layers, heads, vocabulary = map(int, sys.argv[3:8] if len(sys.argv) > 3 else (512, 2048, 6, 8, 58_101))
    output.mkdir(parents=True, exist_ok=True)
    for name in ("source.spm", "target.spm", "tokenizer_config.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, output / name)
    old = json.loads((tokenizer / "config.json").read_text())
    vocab = json.loads((tokenizer / "vocab.json").read_text())
    # Padding stands last in a Marian vocabulary; converters count on it.
    pad, last = old["pad_token_id"], vocabulary - 1
    padding = next(name for name, i in vocab.items() if i == pad)
    vocab = {name: i for name, i in vocab.items() if i < last and i != pad}
    vocab |= {f"<none{i}>": i for i in set(range(last)) - set(vocab.values())} | {padding: last}
    (output / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    config = {
        "model_type": old["model_type"], "eos_token_id": old["eos_token_id"], "pad_token_id": last, "decoder_start_token_id": last,
        "d_model": width, "encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn, "vocab_size": vocabulary,
        "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "max_position_embeddings": 512, "activation_function": "swish",
        "scale_embedding": True,
    }
    (output / "config.json").write_text(json.dumps(config, indent=1))
    write_weights(output / "model.safetensors", tensors(width, ffn, layers, vocabulary))


def tensors(width, ffn, layers, vocabulary):
    """Name, shape and spread of each tensor."""
    yield "model.shared.weight", (vocabulary, width), width**-0.5
    yield "final_logits_bias", (1, vocabulary), 0.0
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for layer in range(layers):
            at = f"model.{side}.layers.{layer}"
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{at}.{attention}.{part}.weight", (width, width), width**-0.5
                    yield f"{at}.{attention}.{part}.bias", (width,), 0.02
            for name, out, inner in (("fc1", ffn, width), ("fc2", width, ffn)):
                yield f"{at}.{name}.weight", (out, inner), inner**-0.5
                yield f"{at}.{name}.bias", (out,), 0.02
            for name in [f"{attention}_layer_norm" for attention in attentions] + ["final_layer_norm"]:
                yield f"{at}.{name}.weight", (width,), None
                yield f"{at}.{name}.bias", (width,), 0.02


def write_weights(path, listed):
    listed = list(listed)
    header, offset = {}, 0
    for name, shape, _ in listed:
        size = 4
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(SEED)
    noise = [rng.gauss(0.0, 1.0) for _ in range(BLOCK)]
    blocks = {}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (name, shape, spread) in enumerate(listed):
            if spread not in blocks:
                values = [1.0] * BLOCK if spread is None else [spread * value for value in noise]
                blocks[spread] = array.array("f", values).tobytes()
            begin, end = header[name]["data_offsets"]
            left, at = end - begin, number * 7919 % BLOCK * 4
            while left:
                part = blocks[spread][at : at + left]
                file.write(part)
                left, at = left - len(part), 0


main()
