"""The shape of CTranslate2: the same calls against its own package, where that is there, on the demo model converted.

PEERS names a Python with ctranslate2, transformers and torch.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import beamfuse
from beamfuse.compat import ctranslate2
from conftest import LINES, MODEL

PEERS = os.environ.get("PEERS", "")

CONVERT = """
import shutil, sys
from pathlib import Path
from transformers import MarianMTModel
from ctranslate2.converters import TransformersConverter
model, copy, converted = map(Path, sys.argv[1:])
copy.mkdir()
for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
    shutil.copy(model / name, copy / name)
MarianMTModel.from_pretrained(model).float().save_pretrained(copy)
TransformersConverter(str(copy)).convert(str(converted))
"""

ASK = """
import json, sys
import ctranslate2
translator = ctranslate2.Translator(sys.argv[1], compute_type="float32", intra_threads=1)
told = []
for name, arguments, options in json.load(sys.stdin):
    found = list(getattr(translator, name)(*arguments, **options))
    fields = {"generate_tokens": ["step", "batch_id", "token_id", "hypothesis_id", "token", "log_prob", "is_last"],
              "score_batch": ["tokens", "log_probs"], "score_iterable": ["tokens", "log_probs"]}.get(name, ["hypotheses", "scores", "attention", "logits"])
    told.append([{field: getattr(each, field) for field in fields} for each in found])
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def ours() -> Any:
    return ctranslate2.Translator(MODEL, intra_threads=1)


@pytest.fixture(scope="module")
def pieces(translator: beamfuse.Translator) -> list[list[str]]:
    return [translator._engine.encode(line) for line in LINES[:60]]


def calls(pieces: list[list[str]]) -> list[tuple[str, list[Any], dict[str, Any]]]:
    # Alone: its results depend on the padding beside them.
    alone = {"max_batch_size": 1}
    scores = {"return_scores": True, **alone}
    prefixes = [["▁Ein"], ["▁Zwei"], []] * (len(pieces) // 3)
    longer = [["▁Ein", "▁Mann"], ["▁Zwei"], []] * (len(pieces) // 3)
    targets = [["▁Ein", "▁Hund", "."], [], ["▁Zwei", "▁Männer"]] * (len(pieces) // 3)
    return [
        ("translate_batch", [pieces], scores),
        ("translate_batch", [pieces], {**scores, "beam_size": 1}),
        ("translate_batch", [pieces], {**scores, "beam_size": 4, "num_hypotheses": 4}),
        ("translate_batch", [pieces], {**scores, "beam_size": 4, "length_penalty": 0, "return_end_token": True}),
        ("translate_batch", [pieces], {**scores, "beam_size": 4, "length_penalty": 0.6, "patience": 2}),
        ("translate_batch", [pieces], {**scores, "beam_size": 4, "max_decoding_length": 12}),
        ("translate_batch", [pieces], {**scores, "beam_size": 4, "min_decoding_length": 13}),
        ("translate_batch", [pieces], {**scores, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}),
        ("translate_batch", [pieces], {**scores, "suppress_sequences": [["."], ["▁Ein", "▁Mann"]]}),
        ("translate_batch", [pieces], {**scores, "disable_unk": True, "max_input_length": 6}),
        ("translate_batch", [pieces, prefixes], {**scores, "beam_size": 1}),
        ("translate_batch", [pieces, prefixes], {**scores, "beam_size": 4, "length_penalty": 0}),
        ("translate_batch", [[[], pieces[0], []]], {**scores, "beam_size": 2, "num_hypotheses": 2}),
        ("translate_batch", [[]], {}),
        ("translate_iterable", [pieces], {"max_batch_size": 7, "beam_size": 3}),
        ("translate_iterable", [pieces, prefixes], {"max_batch_size": 7, "beam_size": 1}),
        ("score_batch", [pieces, targets], alone),
        ("score_batch", [[[], pieces[0]], [["▁Ein", "xyzzy"], ["xyzzy"]]], alone),
        ("score_iterable", [pieces, targets], {"max_batch_size": 1}),
        *[("translate_batch", [pieces[:9], longer[:9]], {**scores, "beam_size": 1, **more}) for more in LIMITS],
        ("translate_batch", [pieces[:9], longer[:9]], {**scores, "beam_size": 4, "length_penalty": 0, "num_hypotheses": 4}),
        ("translate_batch", [[[], pieces[0]], [["▁Ein"], ["xyzzy"]]], {**scores, "beam_size": 1}),
        *[("generate_tokens", [pieces[0]], {"return_log_prob": True, **more}) for more in LIMITS],
        *[("generate_tokens", [pieces[1], ["▁Zwei", "▁Männer"]], {"return_log_prob": True, **more}) for more in LIMITS],
        ("generate_tokens", [[], ["▁Ein"]], {}),
    ]


LIMITS: list[dict[str, Any]] = [
    {}, {"max_decoding_length": 2}, {"max_decoding_length": 4}, {"min_decoding_length": 13}, {"min_decoding_length": 0}, {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1}, {"suppress_sequences": [["▁Ein"], ["."]], "disable_unk": True}, {"max_input_length": 3},
]  # fmt: skip


def close(ours: Any, theirs: Any) -> bool:
    """Equal tokens; scores to what sums of f32 lose."""
    if isinstance(theirs, float) and isinstance(ours, (int, float)):
        return abs(ours - theirs) <= 1e-5 * max(1, abs(theirs))
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(close, ours, theirs))
    return bool(ours == theirs)


def test_calls_give_what_ctranslate2_gives(ours: Any, pieces: list[list[str]], tmp_path: Path) -> None:
    probe = [PEERS, "-c", "import ctranslate2, transformers, torch"]
    if not PEERS or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("PEERS names no Python with ctranslate2, transformers and torch")
    converted = tmp_path / "converted"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([PEERS, "-c", CONVERT, MODEL, tmp_path / "f32", converted], check=True, capture_output=True, env=offline)
    asked = calls(pieces)
    answered = subprocess.run([PEERS, "-c", ASK, converted], input=json.dumps(asked).encode(), check=True, capture_output=True, env=offline)
    for (name, arguments, options), theirs in zip(asked, json.loads(answered.stdout), strict=True):
        found = list(getattr(ours, name)(*arguments, **options))
        assert len(found) == len(theirs), (name, options)
        for at, (one, other) in enumerate(zip(found, theirs)):
            for field, value in other.items():
                assert close(getattr(one, field), value), (name, options, at, field, getattr(one, field), value)


def test_results_have_its_shape(ours: Any, pieces: list[list[str]]) -> None:
    [result] = ours.translate_batch(pieces[:1], return_scores=True)
    assert repr(result).startswith("TranslationResult(hypotheses=[['▁") and result.attention == [] == result.logits
    with pytest.raises(AttributeError):
        result.scores = []
    later = ours.translate_batch(pieces[:3], asynchronous=True)
    assert [each.result() for each in later] == ours.translate_batch(pieces[:3]) and later[0].done()
    scored = ours.score_batch(pieces[:2], [["▁Ein"], []], asynchronous=True)
    assert [each.result() for each in scored] == ours.score_batch(pieces[:2], [["▁Ein"], []])
    assert list(ours.score_iterable(iter(pieces[:5]), iter([["▁Ein"]] * 5), max_batch_size=2)) == ours.score_batch(pieces[:5], [["▁Ein"]] * 5)
    assert (ours.device, ours.compute_type, ours.device_index, ours.num_translators) == ("cpu", "float32", [0], 1)


def test_what_is_not_there_raises_by_name(ours: Any, pieces: list[list[str]]) -> None:
    for name, value in [
        ("coverage_penalty", 0.1), ("end_token", "."), ("prefix_bias_beta", 0.5), ("use_vmap", True), ("return_logits_vocab", True),
        ("return_attention", True), ("return_alternatives", True), ("min_alternative_expansion_prob", 0.1), ("sampling_topk", 5),
        ("sampling_topp", 0.5), ("sampling_temperature", 2), ("replace_unknowns", True), ("callback", print),
    ]:  # fmt: skip
        with pytest.raises(NotImplementedError, match=name):
            ours.translate_batch(pieces[:1], **{name: value})
    with pytest.raises(NotImplementedError, match="target_prefix"):
        ours.translate_batch(pieces[:1], [["▁Ein"]], beam_size=2)
    with pytest.raises(NotImplementedError, match="end of sentence"):
        ours.translate_batch(pieces[:1], [["▁Ein", "</s>"]], beam_size=1)
    for name in ["translate_batch", "generate_tokens"]:
        with pytest.raises(NotImplementedError, match="min_decoding_length"):
            getattr(ours, name)(pieces[:1], min_decoding_length=3, max_decoding_length=3).__iter__().__next__()
    for method in ["load_model", "unload_model", "translate_file", "score_file"]:
        with pytest.raises(NotImplementedError, match=method):
            getattr(ours, method)()
    with pytest.raises(NotImplementedError, match="int16"):
        ctranslate2.Translator(MODEL, compute_type="int16")
    with pytest.raises(AttributeError):
        ours.nothing
    for wrong in [lambda: ours.translate_batch(pieces[:2], [["a"]]), lambda: ours.translate_batch(pieces[:1], num_hypotheses=5),
                  lambda: ours.score_batch(pieces[:2], [])]:  # fmt: skip
        with pytest.raises(ValueError):
            wrong()
