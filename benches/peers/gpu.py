#!/usr/bin/env python3
"""The speed of another program on the same weights and lines as `beamfuse bench`, as JSON.

    gpu.py {ctranslate2|hf} MODEL LINES BATCH DTYPE DEVICE OUTPUT

MODEL is a Marian model directory, LINES a text file, DTYPE float32, float16 or bfloat16, DEVICE cuda or cpu. Needs transformers,
torch and sentencepiece, for ctranslate2 also that: pip install torch transformers sentencepiece ctranslate2. One run that does not
count, then three; the generated tokens of all lines over the time of each.
"""

import json
import pathlib
import sys
import tempfile
import time

BEAM = 4


def ctranslate2_engine(model, dtype, device):
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = pathlib.Path(tempfile.mkdtemp()) / "model"
    TransformersConverter(str(model)).convert(str(converted))
    translator = ctranslate2.Translator(str(converted), device=device, compute_type=dtype)

    def run(tokenizer, lines, batch):
        tokens = [tokenizer.convert_ids_to_tokens(tokenizer(line).input_ids) for line in lines]
        results = translator.translate_batch(tokens, beam_size=BEAM, max_batch_size=batch)
        return sum(len(result.hypotheses[0]) for result in results)

    return run, ctranslate2.__version__


def hf_engine(model, dtype, device):
    import torch
    import transformers

    network = transformers.MarianMTModel.from_pretrained(model, torch_dtype=getattr(torch, dtype)).to(device).eval()

    def run(tokenizer, lines, batch):
        generated = 0
        for first in range(0, len(lines), batch):
            inputs = tokenizer(lines[first : first + batch], return_tensors="pt", padding=True).to(device)
            with torch.inference_mode():
                out = network.generate(**inputs, num_beams=BEAM)
            # Without the start token and the padding.
            generated += int((out[:, 1:] != network.config.pad_token_id).sum())
        return generated

    return run, transformers.__version__


def main():
    name, model, lines, batch, dtype, device, output = sys.argv[1:8]
    from transformers import MarianTokenizer

    run, version = {"ctranslate2": ctranslate2_engine, "hf": hf_engine}[name](model, dtype, device)
    tokenizer = MarianTokenizer.from_pretrained(model)
    lines = pathlib.Path(lines).read_text(encoding="utf-8").splitlines()
    # Long lines first, as these programs like it best.
    lines.sort(key=len, reverse=True)
    run(tokenizer, lines, int(batch))
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        tokens = run(tokenizer, lines, int(batch))
        runs.append({"tokens": tokens, "seconds": time.perf_counter() - start})
    report = {
        "program": name, "version": version, "model": str(model), "lines": len(lines), "batch": int(batch), "beam": BEAM,
        "dtype": dtype, "device": device, "runs": runs,
        "tokens_per_second": max(run["tokens"] / run["seconds"] for run in runs),
    }
    pathlib.Path(output).write_text(json.dumps(report, indent=1) + "\n")


main()
