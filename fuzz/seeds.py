"""Writes seeds/: small valid files for the fuzz targets to start from.

    pip install sentencepiece && python seeds.py
"""

import json
import pathlib
import struct
import tempfile

import sentencepiece

HERE = pathlib.Path(__file__).parent
SEEDS = HERE / "seeds"
TEXT = HERE.parent / "tests" / "data" / "own" / "own.en"

CONFIG = {
    "model_type": "marian", "d_model": 2, "vocab_size": 5, "decoder_vocab_size": 5, "max_position_embeddings": 8,
    "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 3,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 3,
    "activation_function": "swish", "scale_embedding": True, "share_encoder_decoder_embeddings": True,
    "eos_token_id": 0, "pad_token_id": 4, "decoder_start_token_id": 4, "forced_eos_token_id": 0,
}
GENERATION = {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False, "max_length": 32, "min_length": 0,
              "renormalize_logits": True, "forced_eos_token_id": 0, "bad_words_ids": [[4]]}
TOKENIZER = {"separate_vocabs": False, "eos_token": "</s>", "pad_token": {"content": "<pad>"}, "unk_token": "<unk>"}
VOCAB = {"</s>": 0, "<unk>": 1, "▁a": 2, "▁dog": 3, "<pad>": 4}
INDEX = {"metadata": {}, "weight_map": {"model.shared.weight": "a.safetensors", "final_logits_bias": "b.safetensors"}}


TEXT_DOCUMENT = " - Mr. Smith has 3.5 dogs.  They run! \U0001f600\r\n\n1) See https://a.b/?c=d\u2028\u72ac\u304c\u8d70\u308b\u3002\u732b\u3002 One, " + 20 * "two, "
HTML_DOCUMENT = """\ufeff<!DOCTYPE html><html lang=en><head><title>A &amp; b</title><style>p > b {}</style></head>
<body class="x  y"><!-- c --><p>A <b>red <i>dog</i></b> runs.  See <code>ls</code>, &eacute;.<ul><li>one<li translate=no>two</ul>
<pre>a\n b</pre><script>if (a<b) "</p>"</script><br/>x<img alt='>'>y <x>z</x> <a></b></a> 1 < 2 <![CDATA[d]]></p"""
BODIES = {
    "libretranslate": {"q": ["A <b>dog</b>.", "Two."], "source": "en", "target": "de", "format": "html", "alternatives": 1},
    "deepl": {"text": ["A <b>dog</b>."], "target_lang": "DE", "tag_handling": "html", "ignore_tags": "x", "split_sentences": "0"},
    "translate": {"items": [{"source": "A dog. Two.", "id": 7, "options": {"n_best": 2}}], "segment": True, "stream": "items"},
    "score": {"items": [{"source": "A dog.", "target": "Ein Hund."}], "priority": "batch", "deadline_ms": 60000},
    "explain": {"items": [{"source": "A dog."}], "options": {"beam_size": 2}},
    "detect": {"q": "A dog."},
}


def shapes():
    d, vocab, ffn = CONFIG["d_model"], CONFIG["vocab_size"], CONFIG["encoder_ffn_dim"]
    yield "model.shared.weight", [vocab, d]
    yield "final_logits_bias", [1, vocab]
    for side, attentions in [("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])]:
        layer = f"model.{side}.layers.0"
        for attention in attentions:
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"]:
                yield f"{layer}.{attention}.{name}.weight", [d, d]
                yield f"{layer}.{attention}.{name}.bias", [d]
            yield f"{layer}.{attention}_layer_norm.weight", [d]
            yield f"{layer}.{attention}_layer_norm.bias", [d]
        for name, shape in [("fc1", [ffn, d]), ("fc2", [d, ffn])]:
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
        yield f"{layer}.final_layer_norm.weight", [d]
        yield f"{layer}.final_layer_norm.bias", [d]


def checkpoint(dtype):
    header, data = {}, b""
    for name, shape in shapes():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [((len(data) + 7 * i) % 23 - 11) / 8 for i in range(count)]
        part = {"F32": lambda: struct.pack(f"<{count}f", *values), "F16": lambda: struct.pack(f"<{count}e", *values),
                "BF16": lambda: b"".join(struct.pack("<f", v)[2:] for v in values)}[dtype]()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def spm(**options):
    """A model of a few dozen pieces with a few rules of its own: the usual rules are 240 kB."""
    with tempfile.TemporaryDirectory() as folder:
        rules, model = pathlib.Path(folder) / "rules.tsv", pathlib.Path(folder) / "model"
        rules.write_text("41\t61\n42\t62\nFB01\t66 69\n00AD\t\nFF01\t21\n")
        sentencepiece.SentencePieceTrainer.train(
            input=str(TEXT), model_prefix=str(model), normalization_rule_tsv=str(rules), minloglevel=2,
            hard_vocab_limit=False, num_threads=1, **options)
        return model.with_suffix(".model").read_bytes()


def write(target, name, content):
    path = SEEDS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main():
    config = json.dumps(CONFIG, separators=(",", ":")).encode()
    for dtype in ["F32", "F16", "BF16"]:
        write("weights", dtype.lower(), config + b"\xff" + checkpoint(dtype))
    parts = [CONFIG, GENERATION, TOKENIZER, VOCAB, INDEX]
    write("config", "all", b"\xff".join(json.dumps(p, separators=(",", ":")).encode() for p in parts))
    models = {
        "unigram": spm(model_type="unigram", vocab_size=90, user_defined_symbols=["<sep>"]),
        "bpe": spm(model_type="bpe", vocab_size=90),
        "bytes": spm(model_type="unigram", vocab_size=330, byte_fallback=True, treat_whitespace_as_suffix=True),
    }
    text = "A ﬁsh! \u00adB <sep>  dogs \U0001f600".encode()
    for name, model in models.items():
        write("tokenizer", name, struct.pack("<H", len(model)) + model + text)
    (SEEDS / "unigram.spm").write_bytes(models["unigram"])
    write("text", "plain", "A man is riding a bike, 25 € — ﬁne! 中文 😀".encode())
    write("text", "language", ">>fra<< Hello\t  world \u0301".encode())
    lines = [b'{"source": "A dog runs.", "id": 7, "tags": ["a", {"b": null}]}', b'{"source": 3}', b"[1, 2e9]", b"",
             b'{"source": "\\ud83d\\ude00 \\u0000", "seed": 1}\r', b'{"source": "x", "hypotheses": -0.0}', b'\xff"', b"{"]
    write("json_lines", "lines", b"\n".join(lines))
    write("document", "text", b"\x00" + TEXT_DOCUMENT.encode())
    write("document", "html", b"\x01" + HTML_DOCUMENT.encode())
    for where, (name, body) in enumerate(BODIES.items()):
        write("http", name, bytes([where]) + json.dumps(body).encode())
    write("http", "form", b"\x80q=A+dog.&source=en&target=de&format=html")


if __name__ == "__main__":
    main()
