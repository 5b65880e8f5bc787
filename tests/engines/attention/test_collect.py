"""Attention and queries gathered over stored segments, against what transformers' own eager attention reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import kvtool
from kvtool.codecs.prune.scores.inputs import (
    MOVED_QUERIES,
    QUERY_COVARIANCE,
    QUERY_MEAN,
    RECEIVED,
    WINDOW,
    WINDOW_QUERIES,
    WINDOW_WEIGHTS,
)
from kvtool.codecs.rope import turn
from kvtool.engines.attention import capture
from kvtool.engines.attention.collect import AFTER, COLLECTED, FIRST, OF_WINDOW, STATISTICS, collect
from kvtool.engines.capabilities import key_rotations
from kvtool.errors import ModelError
from tests.caches import eager_prefill, sides
from tests.families import loaded

BOUND = 1e-5
"""Largest difference in float32, relative to the largest entry where that is above one."""

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2


def reported(model: kvtool.Model, parts: Any) -> dict[str, list[Tensor]]:
    """What eager attention reports of a plain forward, by name."""
    ids, start = all_ids(parts)
    cache, attentions = eager_prefill(model, ids)
    expected: dict[str, list[Tensor]] = {RECEIVED: [], WINDOW_WEIGHTS: []}
    for weights, layer in zip(attentions, cache.layers, strict=True):
        segment = weights[:, start:, start:]
        heads, tokens = layer.keys.shape[1], segment.shape[-1]
        expected[RECEIVED].append(segment.sum(1).view(heads, -1, tokens).mean(1))
        expected[WINDOW_WEIGHTS].append(segment[:, -WINDOW:])
    return expected


def plain_queries(model: kvtool.Model, parts: Any) -> list[Tensor]:
    """Each layer's queries [Q, T, D] of the segment before their rotation, from the family's own modules."""
    ids, start = all_ids(parts)
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
        for module in map(query_module, attention_modules(model))
    ]
    try:
        eager_prefill(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    config, queries = model.text_config, []
    n_heads = config.num_attention_heads
    for output, module in zip(outputs, attention_modules(model), strict=True):
        if hasattr(module, "query_key_value"):
            heads = output.view(len(ids), n_heads, -1).chunk(3, -1)[0]
        elif hasattr(module, "qkv_proj"):
            heads = output[:, : n_heads * module.head_dim].view(len(ids), n_heads, -1)
        elif output.ndim == 3 and output.shape[1] == len(ids):
            heads = output.transpose(0, 1)
        else:
            heads = output.view(len(ids), n_heads, -1)
        queries.append(heads.transpose(0, 1)[:, start:])
    return queries


def attention_modules(model: kvtool.Model) -> list[Any]:
    return [
        getattr(layer, name)
        for layer in model.model.base_model.layers
        for name in ("self_attn", "attention")
        if hasattr(layer, name)
    ]


def query_module(attention: Any) -> Any:
    names = ("q_norm", "q_proj", "qkv_proj", "query_key_value")
    return next(getattr(attention, name) for name in names if hasattr(attention, name))


def all_ids(parts: Any) -> tuple[Tensor, int]:
    ids = torch.cat([part.token_ids for part in parts])
    return ids, len(ids) - len(parts[-1].token_ids)


def assert_near(one: Tensor, other: Tensor, bound: float = BOUND) -> None:
    assert one.shape == other.shape
    assert (one.dtype, one.device.type) == (torch.float32, "cpu")
    assert (one - other).abs().max() < bound * max(1, other.abs().max())


def check_weights(model: kvtool.Model, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.model.config._attn_implementation
    cache, token_ids = loaded(model, parts)
    states = [x.clone() for x in sides(cache)]
    whole = collect(model, cache, token_ids, {RECEIVED} | OF_WINDOW)
    for name, tensors in reported(model, parts).items():
        for one, truth in zip(whole[name], tensors, strict=True):
            assert_near(one, truth)
            assert truth.std() > 10 * BOUND, "attention looks nowhere in particular, so equality says nothing"
    # In many passes and blocks, as for a long segment.
    monkeypatch.setattr(capture, "SCORES", 30 * cache.get_seq_length())
    monkeypatch.setitem(capture.BLOCK, "cpu", 5000)
    assert_same(collect(model, cache, token_ids, {RECEIVED} | OF_WINDOW), whole)
    # The window alone needs no other tokens.
    alone = collect(model, cache, token_ids, OF_WINDOW)
    assert alone.keys() == OF_WINDOW
    assert_same(alone, {name: whole[name] for name in OF_WINDOW})
    assert model.model.config._attn_implementation == before
    assert all(torch.equal(x, y) for x, y in zip(states, sides(cache), strict=True))
    assert cache.get_seq_length() == len(all_ids(parts)[0])


def assert_same(inputs: Any, others: Any) -> None:
    assert inputs.keys() == others.keys()
    for name, tensors in inputs.items():
        for one, other in zip(tensors, others[name], strict=True):
            assert_near(one, other)


def test_weights_are_those_that_eager_attention_reports(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    assert len(parts) == 2
    check_weights(family, parts, monkeypatch)


def test_soft_capped_scores(softcapped: Any, parts_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_weights(softcapped, parts_of(softcapped), monkeypatch)


def test_without_a_prefix(tiny: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(tiny, system=TEXT)[:1]
    check_weights(tiny, parts, monkeypatch)
    check_queries(tiny, parts)


def check_queries(model: kvtool.Model, parts: Any) -> None:
    cache, token_ids = loaded(model, parts)
    inputs = collect(model, cache, token_ids, STATISTICS)
    assert inputs.keys() == STATISTICS
    start = all_ids(parts)[1]
    queries, rotations = plain_queries(model, parts), key_rotations(model)
    assert rotations is not None
    ropes = rotations.keys
    for index, (plain, module) in enumerate(zip(queries, attention_modules(model), strict=True)):
        scaled = plain[:, max(0, FIRST - start) :].double() * module.scaling * plain.shape[-1] ** 0.5
        assert_near(inputs[QUERY_MEAN][index], scaled.mean(1).float(), 10 * BOUND)
        covariance = torch.stack([head.T.cov(correction=0) for head in scaled])
        assert_near(inputs[QUERY_COVARIANCE][index], covariance.float(), 10 * BOUND)
        # Turned back, those that stand after the segment are the same, in their order.
        moved, rope = inputs[MOVED_QUERIES][index].clone(), ropes[index]
        places = start + len(token_ids) + torch.arange(moved.shape[1]) % AFTER
        turned_back = turn(moved, rope, places, scaling=rope.scaling, undo=True)
        every = scaled.shape[1] // moved.shape[1]
        assert_near(turned_back, scaled[:, ::every].float(), 10 * BOUND)


def test_statistics_are_of_queries_before_their_rotation(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    if family.config.model_type == "deepseek_v3":
        with pytest.raises(ModelError, match=r"deepseek_v3.*queries.*--recipe kvzip"):
            collect(family, *loaded(family, parts), STATISTICS)
        return
    check_queries(family, parts)
    monkeypatch.setattr(capture, "SCORES", 30 * len(all_ids(parts)[0]))
    check_queries(family, parts)


def test_the_window_queries_meet_the_keys(tiny: kvtool.Model, parts_of: Any) -> None:
    parts = parts_of(tiny, system=TEXT)[:1]
    n_tokens = len(parts[0].token_ids)
    inputs = collect(tiny, *loaded(tiny, parts), OF_WINDOW)
    hidden = torch.ones(n_tokens, n_tokens).triu(1).bool()[-WINDOW:]
    for index, (queries, weights) in enumerate(
        zip(inputs[WINDOW_QUERIES], inputs[WINDOW_WEIGHTS], strict=True)
    ):
        keys = parts[0].layer(index).keys
        scores = queries @ keys.repeat_interleave(2, 0).mT / keys.shape[2] ** 0.5
        assert_near(weights, scores.masked_fill(hidden, -torch.inf).softmax(-1))


def test_a_segment_of_one_token(family: kvtool.Model, parts_of: Any) -> None:
    names = COLLECTED - (STATISTICS if family.config.model_type == "deepseek_v3" else frozenset())
    inputs = collect(family, *loaded(family, parts_of(family, "a")), names)
    assert all(weights.shape[1:] == (1, 1) for weights in inputs[WINDOW_WEIGHTS])
    assert all(tensor.isfinite().all() for tensors in inputs.values() for tensor in tensors)


def test_a_family_whose_attention_cannot_be_captured_is_refused(
    tiny: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(tiny)
    before = tiny.model.config._attn_implementation
    monkeypatch.setattr(capture, "eager_attention", lambda module: None)
    with pytest.raises(ModelError, match=r"attention of llama cannot be captured.*--recipe kivi"):
        collect(tiny, *loaded(tiny, parts), {RECEIVED})
    assert tiny.model.config._attn_implementation == before
