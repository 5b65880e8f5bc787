"""Greedy is the likeliest token each time, by every way of asking, whatever a model's files say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool.engines.batching.generate_many import end_tokens, generate_many
from kvtool.engines.cache import DocumentCache
from kvtool.engines.generate import generate
from kvtool.engines.sampling import Sampling
from kvtool.engines.transformers import feed, new_cache

DOCUMENT = [256, *b"Values follow keys, and keys follow values."]
QUESTION = list(b" And then?")
TOKENS = 24

SETTINGS: dict[str, dict[str, Any]] = {
    "use_cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 1.8},
    "n-grams": {"no_repeat_ngram_size": 2},
    "forbidden": {"suppress_tokens": list(range(120)), "bad_words_ids": [[130], [131]]},
    "begin": {"begin_suppress_tokens": list(range(200))},
    "length": {"min_new_tokens": 40, "max_new_tokens": 3, "max_length": 5},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    "outputs": {"output_scores": True, "return_dict_in_generate": True, "output_attentions": True},
    "guidance": {"guidance_scale": 3.0},
    "forced": {"forced_eos_token_id": 257, "forced_bos_token_id": 40},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "stop": {"stop_strings": ["a"], "max_time": 1e-6},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "use_cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 1.8},
    "tuples": {"return_dict": False},
    "attentions": {"output_attentions": True, "output_hidden_states": True},
}


def prefilled(model: kvtool.Model) -> DocumentCache:
    cache = new_cache(model, len(DOCUMENT))
    feed(model, DOCUMENT, cache)
    return cache


def answers(model: kvtool.Model) -> list[list[int]]:
    """The answer without a cache, after one, and among several questions."""
    ids = [*DOCUMENT, *QUESTION]
    several = generate_many(model, prefilled(model), [QUESTION, QUESTION[:3]], [TOKENS, TOKENS])
    given = [generate(model, ids, cache, max_tokens=TOKENS) for cache in (None, prefilled(model))]
    assert all(len(answer) <= TOKENS for answer in given)
    return [*given, several[0]]


def likeliest(model: kvtool.Model) -> list[int]:
    ids = [*DOCUMENT, *QUESTION]
    with torch.no_grad():
        for _ in range(TOKENS):
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-TOKENS:]


def changed(directory: Path, target: Path, file: str, settings: dict[str, Any]) -> kvtool.Model:
    shutil.copytree(directory, target)
    fields = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(fields | settings))
    return kvtool.load_model(target)


def test_every_way_of_asking_gives_the_likeliest_tokens(tiny: kvtool.Model) -> None:
    assert end_tokens(tiny) == {257}
    expected = likeliest(tiny)
    assert 257 not in expected
    assert answers(tiny) == [expected] * 3


@pytest.mark.parametrize("name", SETTINGS)
def test_a_generation_config_decides_nothing(name: str, tiny: kvtool.Model, tmp_path: Path) -> None:
    model = changed(tiny.directory, tmp_path / "model", "generation_config.json", SETTINGS[name])
    assert model.fingerprint == tiny.fingerprint
    assert answers(model) == answers(tiny)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("with_generation_config", [True, False])
def test_settings_in_the_config_decide_nothing(
    name: str, with_generation_config: bool, tiny: kvtool.Model, tmp_path: Path
) -> None:
    model = changed(tiny.directory, tmp_path / "model", "config.json", CONFIGS[name])
    if not with_generation_config:
        (model.directory / "generation_config.json").unlink()
    assert answers(model) == answers(tiny)


def test_the_files_say_which_tokens_end_an_answer(tiny: kvtool.Model, tmp_path: Path) -> None:
    third = likeliest(tiny)[2]
    ends = {"eos_token_id": [257, third]}
    model = changed(tiny.directory, tmp_path / "model", "generation_config.json", ends)
    alone, cached, several = answers(model)
    assert alone == cached == [*several, third] == likeliest(tiny)[: len(alone)]


def test_without_end_tokens_of_its_own_a_model_ends_with_its_tokenizers(
    tiny: kvtool.Model, tmp_path: Path
) -> None:
    none = {"eos_token_id": None}
    model = changed(tiny.directory, tmp_path / "model", "generation_config.json", none)
    assert end_tokens(model) == {257}
    assert answers(model) == answers(tiny)


def test_sampling_may_draw_any_token(tiny: kvtool.Model) -> None:
    ids = [*DOCUMENT, *QUESTION]
    draws = {generate(tiny, ids, None, max_tokens=1, sampling=Sampling(50.0, seed=n))[0] for n in range(150)}
    assert len(draws) > 60
