#!/usr/bin/env python3
"""The speed of another program on the same weights as `beamfuse bench`, as JSON.

    gpu.py {ctranslate2|hf} MODEL OUTPUT (--lines FILE | --length N --sentences N) [--batch N] [--dtype float16] [--device cuda]

MODEL is a Marian model directory. --lines: the lines of a text, as long as their translations are; --length: random sources of so many
tokens, each translated to as many. Needs transformers, torch and sentencepiece, for ctranslate2 also that: pip install torch transformers
sentencepiece ctranslate2. What CTranslate2 converts is kept beside OUTPUT. One run that does not count, then three; the generated tokens
of all sentences over the time of each.
"""

import argparse
import json
import pathlib
import random
import time

BEAM = 4


def ctranslate2_engine(args, tokenizer, sources):
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = pathlib.Path(args.output).parent / f"ctranslate2-{pathlib.Path(args.model).name}"
    if not converted.exists():
        TransformersConverter(args.model).convert(str(converted))
    translator = ctranslate2.Translator(str(converted), device=args.device, compute_type=args.dtype)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in sources]
    length = {"min_decoding_length": args.length, "max_decoding_length": args.length} if args.length else {}

    def run():
        results = translator.translate_batch(tokens, beam_size=BEAM, max_batch_size=args.batch, **length)
        return sum(len(result.hypotheses[0]) for result in results)

    return run, ctranslate2.__version__


def hf_engine(args, tokenizer, sources):
    import torch
    import transformers

    network = transformers.MarianMTModel.from_pretrained(args.model).to(getattr(torch, args.dtype)).to(args.device).eval()
    pad = network.config.pad_token_id
    length = {"min_new_tokens": args.length, "max_new_tokens": args.length} if args.length else {}

    def run():
        generated = 0
        for first in range(0, len(sources), args.batch):
            batch = tokenizer.pad({"input_ids": sources[first : first + args.batch]}, return_tensors="pt").to(args.device)
            with torch.inference_mode():
                out = network.generate(**batch, num_beams=BEAM, **length)
            # Without the start token and the padding.
            generated += int((out[:, 1:] != pad).sum())
        return generated

    return run, transformers.__version__


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", choices=["ctranslate2", "hf"])
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--lines")
    parser.add_argument("--length", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    from transformers import MarianTokenizer

    tokenizer = MarianTokenizer.from_pretrained(args.model)
    if args.lines:
        sources = [tokenizer(line).input_ids for line in pathlib.Path(args.lines).read_text(encoding="utf-8").splitlines()]
    else:
        # Words of the model, not its special tokens.
        words = random.Random(1)
        sources = [
            [words.randrange(1000, 5000) for _ in range(args.length - 1)] + [tokenizer.eos_token_id] for _ in range(args.sentences)
        ]
    # Long ones first, as these programs like it best.
    sources.sort(key=len, reverse=True)
    run, version = {"ctranslate2": ctranslate2_engine, "hf": hf_engine}[args.program](args, tokenizer, sources)
    run()
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        tokens = run()
        runs.append({"tokens": tokens, "seconds": time.perf_counter() - start})
    report = {
        "program": args.program, "version": version, "model": pathlib.Path(args.model).name, "sentences": len(sources),
        "length": args.length or None, "batch": args.batch, "beam": BEAM, "dtype": args.dtype, "device": args.device, "runs": runs,
        "tokens_per_second": max(run["tokens"] / run["seconds"] for run in runs),
    }
    pathlib.Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


main()
