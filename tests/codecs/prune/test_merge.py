"""Merging against plain loops over the papers' formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.codecs import LayerKV
from kvtool.codecs.prune.merge import d2o as d2o_module
from kvtool.codecs.prune.merge.compensation import compensated
from kvtool.codecs.prune.merge.d2o import d2o
from kvtool.codecs.prune.merge.elastic import elastic
from kvtool.codecs.prune.merge.join import join
from kvtool.codecs.prune.merge.kvmerger import kvmerger
from kvtool.codecs.prune.scores import inputs as names
from tests.codecs.prune.scored import scored

MERGES = {"d2o": d2o, "elastic": elastic}


@st.composite
def masked(draw: st.DrawFn) -> tuple[LayerKV, torch.Tensor]:
    tokens = draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=2 * tokens, max_size=2 * tokens))
    return scored(tokens, seed=draw(st.integers(0, 9))).layer, torch.tensor(bits).view(2, tokens)


def same(merged: LayerKV, expected: list[list[torch.Tensor]], mask: torch.Tensor) -> None:
    """Keys and values side by side of the kept tokens are ``expected`` [H][T]; dropped ones are left out."""
    both = torch.cat([merged.keys, merged.values], -1)
    for h, t in mask.nonzero().tolist():
        assert torch.allclose(both[h, t], expected[h][t], atol=1e-5)


def sides(layer: LayerKV) -> list[list[torch.Tensor]]:
    return [list(head) for head in torch.cat([layer.keys, layer.values], -1)]


@settings(max_examples=40)
@given(masked())
def test_d2o_merges_into_the_most_similar_kept_token(case: tuple[LayerKV, torch.Tensor]) -> None:
    layer, mask = case
    expected, best = sides(layer), []
    for h, keys in enumerate(layer.keys):
        kept = mask[h].nonzero().flatten().tolist()
        for t in (~mask[h]).nonzero().flatten().tolist():
            if kept:
                best.append(
                    (h, t, *max((torch.cosine_similarity(keys[t], keys[k], 0).item(), k) for k in kept))
                )
    threshold = sum(cosine for _, _, cosine, _ in best) / max(len(best), 1)
    before = sides(layer)
    for h, k in mask.nonzero().tolist():
        # A single one is the mean itself, which rounding may set a hair below.
        into = [(t, c) for head, t, c, near in best if (head, near) == (h, k) and c >= threshold - 1e-6]
        total = math.e + sum(math.exp(cosine) for _, cosine in into)
        expected[h][k] = (math.e * before[h][k] + sum(math.exp(c) * before[h][t] for t, c in into)) / total
    if all(abs(cosine - threshold) > 1e-5 for _, _, cosine, _ in best):
        same(d2o(layer, mask), expected, mask)


def test_d2o_goes_through_a_long_segment_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = scored(40).layer
    mask = torch.rand(2, 40) < 0.5
    whole = d2o(layer, mask)
    monkeypatch.setattr(d2o_module, "SIMILARITIES_AT_ONCE", 30)
    assert torch.allclose(d2o(layer, mask).keys, whole.keys, atol=1e-6)


@settings(max_examples=40)
@given(masked(), st.integers(0, 4))
def test_elastic_averages_what_is_nearest(case: tuple[LayerKV, torch.Tensor], sinks: int) -> None:
    layer, mask = case
    tokens, expected, before = mask.shape[1], sides(layer), sides(layer)
    for h in range(2):
        anchors = [k for k in range(sinks, tokens - 1) if mask[h, k]]
        for k in anchors:
            into = [
                t
                for t in range(tokens)
                if not mask[h, t] and min(anchors, key=lambda a: (abs(a - t), a)) == k
            ]
            expected[h][k] = torch.stack([before[h][t] for t in (k, *into)]).mean(0)
    same(elastic(layer, mask, sinks), expected, mask)


@pytest.mark.parametrize("name", MERGES)
def test_merging_leaves_a_layer_that_keeps_all_or_nothing(name: str) -> None:
    layer = scored(9).layer
    for mask in (torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 9, dtype=torch.bool)):
        merged = MERGES[name](layer, mask)
        assert torch.equal(merged.keys, layer.keys)
        assert torch.equal(merged.values, layer.values)


@pytest.mark.parametrize("name", MERGES)
def test_merging_keeps_the_dtype_and_what_stands_beside(name: str) -> None:
    layer = scored(9).layer
    layer = dataclasses.replace(layer, keys=layer.keys.bfloat16(), values=layer.values.bfloat16())
    merged = MERGES[name](layer, torch.arange(9).expand(2, 9) % 3 == 1)
    assert merged.keys.dtype == merged.values.dtype == torch.bfloat16
    assert torch.equal(merged.positions, layer.positions)
    assert not torch.equal(merged.keys, layer.keys)


def test_tokens_that_none_joins_keep_their_bits() -> None:
    layer = scored(5).layer
    targets = torch.tensor([[0, 0, 2, 3, 3], [0, 1, 2, 3, 4]])
    merged = join(layer, targets, torch.tensor([[1.0, 3.0, 0.3, 1.0, 0.0], [0.7] * 5]))
    assert torch.equal(merged.keys[1], layer.keys[1])
    assert torch.equal(merged.keys[0, 2:], layer.keys[0, 2:])
    assert torch.allclose(merged.values[0, 0], (layer.values[0, 0] + 3 * layer.values[0, 1]) / 4)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 12))
def test_kvmerger_joins_the_most_similar_neighbours(
    n: int, seed: int, sinks: int, recent: int, fewer: int
) -> None:
    case = scored(n, seed=seed)
    received = case.inputs[names.RECEIVED]
    always = torch.tensor([t < sinks or t >= n - recent for t in range(n)])
    merged, mask = kvmerger(case.layer, received, always, torch.tensor([max(n - fewer, 0), n]))
    assert mask[1].all()
    assert mask[:, always].all()
    keys, expected, before = case.layer.keys[0], sides(case.layer), sides(case.layer)
    pairs = sorted(
        (
            (-torch.cosine_similarity(keys[t], keys[t - 1], 0).item(), t)
            for t in range(1, n)
            if not always[t] and not always[t - 1]
        ),
    )
    joined = {t for _, t in pairs[: min(fewer, n)]}
    runs: list[list[int]] = []
    for t in range(n):
        if t in joined:
            runs[-1].append(t)
        else:
            runs.append([t])
    pivots = [max(run, key=lambda t: (received[0, t].item(), -t)) for run in runs]
    assert mask[0].nonzero().flatten().tolist() == pivots
    for run, pivot in zip(runs, pivots, strict=True):
        squares = [(keys[t] - keys[pivot]).square().sum().item() for t in run]
        spread = sum(squares) / len(run)
        weights = [math.exp(-square / (2 * spread)) if spread else 1.0 for square in squares]
        terms = [w * before[0][t] for w, t in zip(weights, run, strict=True)]
        expected[0][pivot] = torch.stack(terms).sum(0) / sum(weights)
    same(merged, expected, mask)


def test_a_compensation_token_stands_for_all_dropped_ones() -> None:
    case = scored(9)
    layer, queries = case.layer, torch.randn(2, 4)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 3:7] = False
    filled, kept = compensated(layer, mask)
    assert kept.int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 1, 1], [1] * 9]
    assert torch.allclose(filled.keys[0, 3], layer.keys[0, 3:7].mean(0))
    assert torch.allclose(filled.values[0, 3], layer.values[0, 3:7].mean(0))
    # As much as four tokens with that key.
    scores = queries[0] @ filled.keys[0][kept[0]].T + filled.bias[0][kept[0]]
    four = torch.cat([layer.keys[0, :3], filled.keys[0, 3:4].expand(4, -1), layer.keys[0, 7:]])
    weights = (queries[0] @ four.T).softmax(0)
    assert scores.softmax(0)[3].item() == pytest.approx(weights[3:7].sum().item(), rel=1e-5)
    assert torch.equal(filled.keys[1], layer.keys[1])
    assert not filled.bias[1].any()
