"""Writes tiny random Marian models and what transformers computes with them.

    pip install torch==2.9.0 transformers==4.57.1 sentencepiece safetensors
    python make.py            # in this directory; overwrites the models and expected.json

Each model directory holds config.json, generation_config.json and weights; the tokenizer files that several share lie beside them in
tokenizer-shared and tokenizer-separate. Weights are random, from fixed seeds, and large enough that searches do not all end alike.
"""

import copy
import io
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, MarianConfig, MarianMTModel

HERE = Path(__file__).parent
SOURCES = ["A man.", "Two dogs run.", "The cat sleeps on the sofa.", "A girl reads a red book in the park."]
MAX_POSITIONS = 40
# Small beside the other weights, or every token would call for itself again.
TABLES = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


def train(lines, size, model_type):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type=model_type,
        normalization_rule_name="identity", character_coverage=0.98, bos_id=-1, minloglevel=2)
    return model.getvalue()


def pieces(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(len(processor))]


def vocabulary(*models):
    normal = [p for model in models for p in pieces(model) if p not in ("<unk>", "</s>")]
    names = ["</s>", "<unk>", "<pad>", *dict.fromkeys(normal)]
    return {name: i for i, name in enumerate(names)}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tokenizers():
    english = (HERE / "../own/own.en").read_text(encoding="utf-8").splitlines()
    german = (HERE / "../metrics/own.reference.de").read_text(encoding="utf-8").splitlines()
    source, target = train(english, 60, "unigram"), train(german, 64, "bpe")
    found = {}
    for name, tables in [("shared", [vocabulary(source, target)]), ("separate", [vocabulary(source), vocabulary(target)])]:
        folder = HERE / f"tokenizer-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "source.spm").write_bytes(source)
        (folder / "target.spm").write_bytes(target)
        for file, table in zip(["vocab.json", "target_vocab.json"], tables):
            write_json(folder / file, table)
        write_json(folder / "tokenizer_config.json", {"separate_vocabs": len(tables) == 2})
        found[name] = (sentencepiece.SentencePieceProcessor(model_proto=source), tables[0], tables[-1])
    return found


# What differs from the base, per variant: configuration, generation configuration, and how it is saved.
BASE = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
    decoder_ffn_dim=24, activation_function="swish", scale_embedding=True, max_position_embeddings=MAX_POSITIONS, dropout=0.0)
BASE_GENERATION = dict(num_beams=3, max_length=14)
VARIANTS = {
    "swish-scaled": dict(dtype="float32"),
    "relu-unscaled": dict(config=dict(activation_function="relu", scale_embedding=False)),
    "gelu-bf16": dict(config=dict(activation_function="gelu"), dtype="bfloat16", generation=dict(early_stopping=True, length_penalty=0.6)),
    "gelu-new": dict(config=dict(activation_function="gelu_new"), generation=dict(early_stopping="never", length_penalty=1.4)),
    "different-stacks": dict(config=dict(
        encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=40)),
    "odd-width": dict(config=dict(d_model=21, encoder_attention_heads=3, decoder_attention_heads=7)),
    "separate": dict(config=dict(share_encoder_decoder_embeddings=False)),
    "untied": dict(config=dict(tie_word_embeddings=False)),
    "separate-untied": dict(config=dict(share_encoder_decoder_embeddings=False, tie_word_embeddings=False)),
    "sharded": dict(shard="4KB"),
    "own-positions": dict(positions=0.7),
    "renormalized": dict(generation=dict(renormalize_logits=True, min_length=6)),
    "min-length": dict(eos=6.0, generation=dict(min_length=9, max_length=12)),
    "ignored-flags": dict(config=dict(normalize_before=True, normalize_embedding=True, add_final_layer_norm=True)),
}


def build(name, variant, seed, source_table, target_table):
    torch.manual_seed(seed)
    pad, separate = target_table["<pad>"], not variant.get("config", {}).get("share_encoder_decoder_embeddings", True)
    settings = BASE | dict(
        vocab_size=len(source_table), decoder_vocab_size=len(target_table), pad_token_id=pad, eos_token_id=0,
        decoder_start_token_id=pad, forced_eos_token_id=0, bos_token_id=None) | variant.get("config", {})
    model = MarianMTModel(MarianConfig(**settings))
    if separate:
        # The constructor gives the decoder as many rows as the encoder.
        model.resize_decoder_token_embeddings(len(target_table))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" in key:
                continue
            if "layer_norm" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.25 if key in TABLES else 0.6))
        model.final_logits_bias.copy_(0.5 * torch.randn_like(model.final_logits_bias))
        # So that some sentences end before the limit.
        model.final_logits_bias[0, 0] = variant.get("eos", 2.5)
        model.tie_weights()
    generation = BASE_GENERATION | variant.get("generation", {})
    model.generation_config = GenerationConfig(
        bad_words_ids=[[pad]], decoder_start_token_id=pad, pad_token_id=pad, eos_token_id=0, forced_eos_token_id=0, **generation)
    return model.eval()


def save(name, variant, model):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    saved = copy.deepcopy(model).to(getattr(torch, variant.get("dtype", "float16")))
    saved.save_pretrained(folder, max_shard_size=variant.get("shard", "1GB"))
    if "positions" in variant:
        weights = load_file(folder / "model.safetensors")
        for side, stack in [("encoder", model.model.encoder), ("decoder", model.model.decoder)]:
            weights[f"model.{side}.embed_positions.weight"] = (stack.embed_positions.weight.detach() * variant["positions"]).half()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder, variant, model):
    """What transformers makes of the directory; it cannot load a decoder vocabulary of another size, so there the rounded original."""
    if model.config.share_encoder_decoder_embeddings:
        return MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    # generate() takes the size of the vocabulary that it searches from here.
    model.config.vocab_size = model.config.decoder_vocab_size
    dtype = getattr(torch, variant.get("dtype", "float16"))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # Positions are not saved but computed anew, in float32.
            if "embed_positions" not in name:
                tensor.copy_(tensor.to(dtype))
    return model


@torch.no_grad()
def search(model, ids, beams):
    # num_beams None: as generation_config.json says. Scores come with beam search only.
    given = {} if beams is None else dict(num_beams=beams)
    count = beams or model.generation_config.num_beams
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), num_return_sequences=count,
        return_dict_in_generate=True, output_scores=True, **given)
    sequences, pad = [s.tolist()[1:] for s in out.sequences], model.config.pad_token_id
    for sequence in sequences:
        while sequence and sequence[-1] == pad:
            sequence.pop()
    scores = out.sequences_scores.tolist() if count > 1 else [None] * count
    return [dict(token_ids=s, score=score) for s, score in zip(sequences, scores)]


@torch.no_grad()
def log_probs(model, ids, target):
    inputs = [model.config.decoder_start_token_id, *target[:-1]]
    logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([inputs])).logits[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0].tolist()


def main():
    found, expected = tokenizers(), {}
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        separate = variant.get("config", {}).get("share_encoder_decoder_embeddings") is False
        tokenizer = "separate" if separate else "shared"
        processor, source_table, target_table = found[tokenizer]
        model = build(name, variant, seed, source_table, target_table)
        folder = save(name, variant, model)
        model, lines = load(folder, variant, model), []
        for source in SOURCES:
            ids = [source_table.get(p, source_table["<unk>"]) for p in processor.encode(source, out_type=str)] + [0]
            preset = search(model, ids, None)
            lines.append(dict(
                source=source, source_ids=ids, preset=preset, greedy=search(model, ids, 1)[0]["token_ids"], beam5=search(model, ids, 5),
                log_probs=log_probs(model, ids, preset[0]["token_ids"])))
        expected[name] = dict(tokenizer=tokenizer, lines=lines)
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in expected.items())
    (HERE / "expected.json").write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
