"""Attention and queries measured over stored segments, against what transformers' own eager attention reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvtool
from kvtool.engines.attention import capture, probe
from kvtool.engines.attention.probe import observe, probe_tokens
from kvtool.engines.transformers import windows
from kvtool.errors import StoreError
from tests.caches import eager_prefill
from tests.families import loaded

BOUND = 1e-5
"""Largest difference of a mean attention weight in float32."""

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 3


def reported(model: kvtool.Model, parts: Any) -> list[torch.Tensor]:
    """``attention`` with all tokens as probes, from one plain forward with ``output_attentions``."""
    ids = torch.cat([part.token_ids for part in parts])
    start = len(ids) - len(parts[-1].token_ids)
    cache, attentions = eager_prefill(model, ids)
    scores = []
    for weights, layer, window in zip(attentions, cache.layers, windows(model), strict=True):
        segment = weights[:, start:, start:]
        tokens = torch.arange(segment.shape[-1])
        ahead = tokens[:, None] - tokens[None, :]
        seen = (ahead >= 0) & (ahead < (window or len(ids)))
        score = segment.sum(1) / seen.sum(0)
        scores.append(score.view(layer.keys.shape[1], -1, len(tokens)).mean(1))
    return scores


def check_all_tokens_as_probes(model: kvtool.Model, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n_tokens = len(parts[-1].token_ids)
    before = model.model.config._attn_implementation
    expected = reported(model, parts)
    whole = observe(model, *loaded(model, parts), torch.arange(n_tokens))
    for score, truth in zip(whole["attention"], expected, strict=True):
        assert score.shape == truth.shape
        assert (score.dtype, score.device.type) == (torch.float32, "cpu")
        assert (score - truth).abs().max() < BOUND
        assert truth.std() > 10 * BOUND, "attention looks nowhere in particular, so equality says nothing"
    # In many passes, as for a long segment.
    monkeypatch.setattr(capture, "SCORES", 7 * sum(len(part.token_ids) for part in parts))
    for name, tensors in observe(model, *loaded(model, parts), torch.arange(n_tokens)).items():
        for one, other in zip(tensors, whole[name], strict=True):
            assert (one - other).abs().max() < BOUND * max(1, other.abs().max())
    assert model.model.config._attn_implementation == before


def test_all_tokens_as_probes_give_what_eager_attention_reports(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    assert len(parts) == 2
    check_all_tokens_as_probes(family, parts, monkeypatch)


def test_soft_capped_scores(softcapped: Any, parts_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all_tokens_as_probes(softcapped, parts_of(softcapped), monkeypatch)


def test_without_a_prefix(tiny: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(tiny, system=TEXT)[:1]
    assert parts[0].contents.start == 0
    check_all_tokens_as_probes(tiny, parts, monkeypatch)


def test_queries_are_those_that_meet_the_keys(tiny: kvtool.Model, parts_of: Any) -> None:
    """Their scores with the stored keys, under softmax, are the weights that eager attention reports."""
    parts = parts_of(tiny, system=TEXT)[:1]
    n_tokens = len(parts[0].token_ids)
    probes = torch.tensor([5, 40, n_tokens - 1])
    inputs = observe(tiny, *loaded(tiny, parts), probes)
    expected = observe(tiny, *loaded(tiny, parts), probes[-1:])["attention"]
    for index, (queries, score) in enumerate(zip(inputs["queries"], expected, strict=True)):
        keys = parts[0].layer(index).keys
        assert queries.shape == (4, 3, keys.shape[2])
        scores = queries[:, -1:] @ keys.repeat_interleave(2, 0).mT / keys.shape[2] ** 0.5
        weights = scores.softmax(-1)[:, 0].view(2, 2, n_tokens).mean(1)
        assert (weights - score).abs().max() < BOUND


def test_every_family_is_compressed_by_its_attention(
    family: kvtool.Model, parts_of: Any, tmp_path: Any
) -> None:
    parts_of(family)
    store = kvtool.Store(tmp_path / "store")
    (name,) = store
    assert kvtool.compress(store, name, recipe="zipcache", model=family).compressed == [name]
    assert torch.equal(store.load(name, family, "zipcache").token_ids, store.load(name, family).token_ids)
    if family.config.model_type == "deepseek_v3":
        with pytest.raises(StoreError, match="shape of queries"):
            kvtool.compress(store, name, recipe="mikv", model=family)
    else:
        assert kvtool.compress(store, name, recipe="mikv", model=family).compressed == [name]


def test_tokens_out_of_every_probes_sight_get_the_mean(model_of: Any, parts_of: Any) -> None:
    model = model_of("mistral")
    parts = parts_of(model)
    score = observe(model, *loaded(model, parts), torch.tensor([30]))["attention"][0]
    assert torch.allclose(score[:, :15], score[:, 15:31].mean(1, keepdim=True))
    assert score[:, 15:31].std() > 0


def test_a_segment_of_one_token(family: kvtool.Model, parts_of: Any) -> None:
    inputs = observe(family, *loaded(family, parts_of(family, "a")))
    assert all(score.shape[1] == 1 and 0 < score.max() <= 1 for score in inputs["attention"])
    assert all(queries.shape[1] == 1 for queries in inputs["queries"])


def test_the_same_again(tiny: kvtool.Model, parts_of: Any) -> None:
    parts = parts_of(tiny)
    first, again = observe(tiny, *loaded(tiny, parts)), observe(tiny, *loaded(tiny, parts))
    assert all(torch.equal(x, y) for name in first for x, y in zip(first[name], again[name], strict=True))


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 8, 9, 16, 17, 100, 161, 2000])
def test_probes_are_the_last_tokens_and_some_others(n_tokens: Any) -> None:
    probes = probe_tokens(n_tokens)
    assert torch.equal(probes, probe_tokens(n_tokens))
    assert probes.tolist() == sorted(set(probes.tolist()))
    assert len(probes) == (min(n_tokens, 16) if n_tokens <= 160 else 2 * -(-n_tokens // 20))
    share = min(n_tokens, len(probes) // 2)
    assert probes[len(probes) - share :].tolist() == list(range(n_tokens - share, n_tokens))
    assert not len(probes) or 0 <= probes[0] <= probes[-1] == n_tokens - 1


def test_the_model_is_left_as_it_was_after_an_error(
    tiny: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(tiny)
    before = tiny.model.config._attn_implementation
    monkeypatch.setattr(probe._ReceivedAttention, "on_queries", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        observe(tiny, *loaded(tiny, parts))
    assert tiny.model.config._attn_implementation == before
