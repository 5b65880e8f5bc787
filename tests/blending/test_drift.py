"""Changes that are passed on, against the same computed slowly: one token, one head, one pair of channels at a time."""

from __future__ import annotations

import cmath
import copy
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import kvtool
from kvtool import Store
from kvtool.blending import drift
from kvtool.blending.drift import (
    PART,
    REACH,
    SHARED_BY_KEYS,
    SHARED_BY_VALUES,
    STRIDE,
    Drift,
    _weigh,
)
from kvtool.blending.layer_loader import empty_cache
from kvtool.blending.layout import Cached, Layout, Text, lay_out
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import key_rotations
from tests.caches import same, sides

PARTS = ["a.txt", Text(" and "), "b.txt", Cached("c@home.txt", "raw"), "long.txt", Cached("b.txt")]
"""All but the first stand elsewhere than where they were prefilled."""


def turned_by_hand(x: list[float], position: int, theta: float = 10_000.0) -> list[float]:
    """One head's channels at ``position``: channel i and i + R/2 are the real and imaginary part of a number."""
    half = len(x) // 2
    turns = [cmath.exp(1j * position * theta ** (-i / half)) for i in range(half)]
    pairs = [complex(*parts) * turn for *parts, turn in zip(x[:half], x[half:], turns, strict=True)]
    return [pair.real for pair in pairs] + [pair.imag for pair in pairs]


def slowly(
    layout: Layout, tokens: list[int], change: Tensor, held: Tensor, shared: float, *, rotated: bool
) -> tuple[Tensor, set[int]]:
    """``held`` [H, N, D] with half of each other token's estimated change, and which tokens these are.

    Estimates are those of Gaussian process regression, by numpy, one block of places at a time.
    """
    result, touched = held.clone().double(), set()
    for segment in layout.segments[2:]:
        recomputed = [n for n in tokens if segment.start <= n < segment.stop]
        if not recomputed:
            continue
        places = np.array(recomputed, dtype=float)
        covariance = shared * np.exp(-np.abs(places[:, None] - places) / REACH)
        np.fill_diagonal(covariance, 1)
        for head, n in product(range(held.shape[0]), range(segment.start, segment.stop)):
            if n in recomputed:
                continue
            rows = [change[head, tokens.index(m)].tolist() for m in recomputed]
            if rotated:
                rows = [turned_by_hand(row, -m) for m, row in zip(recomputed, rows, strict=True)]
            middle = segment.start + (n - segment.start) // STRIDE * STRIDE + (STRIDE - 1) / 2
            weights = np.linalg.solve(covariance, shared * np.exp(-np.abs(places - middle) / REACH))
            estimate = (weights @ np.array(rows) / 2).tolist()
            result[head, n] += torch.tensor(turned_by_hand(estimate, n) if rotated else estimate).double()
            touched.add(n)
    return result, touched


def filled(layout: Layout) -> DocumentCache:
    cache = empty_cache(layout)
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    return cache


def some_of(layout: Layout) -> list[int]:
    """The text between, seven tokens of b, four of c, one of the long one's first segment, and the end of b again."""
    _, _, b, c, long, *_, again = layout.segments
    text = (~layout.cached).nonzero()[:, 0].tolist()
    return [
        *text,
        *range(b.start, b.stop, 10)[:7],
        *range(c.start + 3, c.start + 7),
        long.start + 5,
        *range(again.stop - 20, again.stop),
    ]


@pytest.fixture(params=["lively", "latent"])
def model(request: pytest.FixtureRequest) -> kvtool.Model:
    return request.getfixturevalue(request.param)


@pytest.fixture
def layout(
    request: pytest.FixtureRequest, model: kvtool.Model, prepared: Store, prefill_texts: Callable[..., Store]
) -> Layout:
    latent = request.node.callspec.params["model"] == "latent"
    return lay_out(prefill_texts(model, neighbours=1) if latent else prepared, PARTS, model)


def test_half_of_the_estimated_change_is_passed_on(
    request: pytest.FixtureRequest, model: kvtool.Model, layout: Layout
) -> None:
    rotations = key_rotations(model)
    assert rotations is not None
    latent = request.node.callspec.params["model"] == "latent"
    # In latent attention it is the values that are rotated.
    assert bool(rotations.values[0].inv_freq) is latent
    assert bool(rotations.keys[0].inv_freq) is not latent
    tokens, cache = some_of(layout), filled(layout)
    passing = Drift(layout, rotations, cache, torch.tensor(tokens))
    layer = len(cache.layers) - 1
    held = cache.layers[layer]
    changes = [torch.randn(x.shape[1], len(tokens), x.shape[3]) for x in (held.keys, held.values)]
    expected = [
        slowly(layout, tokens, change, x[0], shared, rotated=rotated)
        for change, x, shared, rotated in zip(
            changes,
            (held.keys, held.values),
            (SHARED_BY_KEYS, SHARED_BY_VALUES),
            (not latent, latent),
            strict=True,
        )
    ]
    unchanged, before = copy.deepcopy((changes, cache))
    passing(layer, *changes)
    *others, keys, values = zip(sides(cache), sides(before), strict=True)
    for (now, was), (right, touched) in zip((keys, values), expected, strict=True):
        torch.testing.assert_close(now[0].double(), right, atol=2e-4, rtol=1e-4)
        moved = (now != was).any(-1).any(1)[0].nonzero()[:, 0].tolist()
        assert moved == sorted(touched)
    # Neither the other layers nor the changes themselves.
    assert all(torch.equal(x, y) for x, y in zip(changes, unchanged, strict=True))
    assert all(torch.equal(now, was) for now, was in others)


def test_who_is_touched(documents: Store, prepared: Store, lively: kvtool.Model) -> None:
    """Segments elsewhere than where they were prefilled: no exact ones, no text, none without recomputed tokens."""
    for store in (documents, prepared):
        layout = lay_out(store, PARTS, lively)
        rotations = key_rotations(lively)
        assert rotations is not None
        tokens = [n for n in some_of(layout) if not layout.segments[3].start <= n < layout.segments[3].stop]
        passing = Drift(layout, rotations, filled(layout), torch.tensor(tokens))
        _, _, b, _, long, *_, again = layout.segments
        expected = {n for s in (b, long, again) for n in range(s.start, s.stop)} - set(tokens)
        assert {n for segment in passing.segments for n in segment.targets.tolist()} == expected


def test_few_changes_correct_less_than_many_alike() -> None:
    """Where all changes are alike, the estimate comes the nearer to them the more there are, and never beyond."""
    sums = [
        float(_weigh(n, n * 4, torch.tensor([90]), 0).by_keys[-1].sum())
        for n in map(torch.arange, (1, 4, 20))
    ]
    assert 0 < sums[0] < sums[1] < sums[2] < PART


def test_a_blend_passes_on_before_the_layer_is_read(
    prepared: Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens recomputed after changed ones see the change at the next layer; those before them see nothing."""
    options = {"policy": "drift", "recompute": 0.2}
    names = ["a.txt", "b.txt", "c@home.txt"]
    with_drift = kvtool.blend(prepared, names, lively, **options)
    monkeypatch.setattr(drift, "PART", 0.0)
    without = kvtool.blend(prepared, names, lively, **options)
    naive = kvtool.blend(prepared, names, lively, recompute=0)
    layout = lay_out(prepared, names, lively)

    def differ(a: Tensor, b: Tensor, bound: float = 1e-4) -> set[int]:
        return set(((a - b).abs().amax((0, 1, 3)) > bound).nonzero()[:, 0].tolist())

    # From the second layer on values depend on what stands before a token.
    recomputed = differ(without.layers[1].values, naive.layers[1].values)
    assert len(recomputed) == with_drift.recomputed == -(-layout.n_document_tokens // 5)
    others = {n for s in layout.segments[2:] for n in range(s.start, s.stop)} - recomputed
    assert differ(with_drift.layers[1].values, without.layers[1].values) == others
    later = {n for n in recomputed if n > min(others)}
    assert 0 < len(later) < len(recomputed)
    assert differ(with_drift.layers[2].values, without.layers[2].values, 0.0) == others | later
    assert same(with_drift, naive, layout.exact)
