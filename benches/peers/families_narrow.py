#!/usr/bin/env python3
"""Counts the searches in which transformers finds other ids in float16, in bfloat16, and with linear layers that PyTorch quantises dynamically to 8
bits, than in float32: on small models of several families, on the CPU.

    python3 benches/peers/families_narrow.py tests/data/families

The searches are the lines of kind `generate` of each directory's `expected.jsonl` (tests/data/families/README.md). The tests
`stay_near_f32` of src/model/tests.rs make the same with beamfuse. The packages that are needed are installed as for presets.py.
"""
import argparse, json, pathlib

import environment

TYPES = ['float32', 'float16', 'bfloat16', 'int8']


def model(directory, kind):
    import torch
    from transformers import AutoModelForSeq2SeqLM
    loaded = AutoModelForSeq2SeqLM.from_pretrained(directory, torch_dtype=torch.float32 if kind == 'int8' else getattr(torch, kind)).eval()
    return torch.ao.quantization.quantize_dynamic(loaded, {torch.nn.Linear}, dtype=torch.qint8) if kind == 'int8' else loaded


def search(loaded, item):
    """The ids of the best hypothesis."""
    import torch
    ids = torch.tensor([item['input_ids']])
    start = {'decoder_start_token_id': item['decoder_start_token_id']} if item.get('decoder_start_token_id') is not None else {}
    with torch.no_grad():
        return loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **item['settings'], **start)[0].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', type=pathlib.Path)
    arguments = parser.parse_args()
    environment.enter()
    searches, others = 0, dict.fromkeys(TYPES[1:], 0)
    for file in sorted(arguments.models.glob('*/expected.jsonl')):
        items = [item for item in map(json.loads, file.read_text().splitlines()) if item['kind'] == 'generate']
        found = {kind: [search(loaded, item) for item in items] for kind in TYPES for loaded in [model(file.parent, kind)]}
        differing = {kind: sum(map(list.__ne__, found[kind], found['float32'])) for kind in others}
        print(f'{file.parent.name}: {len(items)} searches, others in {differing}', flush=True)
        searches += len(items)
        others = {kind: others[kind] + differing[kind] for kind in others}
    print(f'all: {searches} searches, others in {others}')


if __name__ == '__main__':
    main()
