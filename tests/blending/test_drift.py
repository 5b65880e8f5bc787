"""Changes that are passed on, against the same computed slowly: one token, one head, one pair of channels at a time."""

from __future__ import annotations

import cmath
import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import kvtool
from kvtool import Store
from kvtool.blending import drift
from kvtool.blending.drift import HALF, Drift
from kvtool.blending.layer_loader import empty_cache
from kvtool.blending.layout import Cached, Layout, Text, lay_out
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import key_rotations
from tests.caches import same, sides

PARTS = ["a.txt", Text(" and "), "b.txt", Cached("c@home.txt", "raw"), "long.txt", Cached("b.txt")]
"""Of these the second and the last are made for blending, and the long one's three segments."""


def turned_by_hand(x: list[float], position: int, theta: float = 10_000.0) -> list[float]:
    """One head's channels at ``position``: channel i and i + R/2 are the real and imaginary part of a number."""
    half = len(x) // 2
    turns = [cmath.exp(1j * position * theta ** (-i / half)) for i in range(half)]
    pairs = [complex(*parts) * turn for *parts, turn in zip(x[:half], x[half:], turns, strict=True)]
    return [pair.real for pair in pairs] + [pair.imag for pair in pairs]


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def slowly(
    layout: Layout, tokens: list[int], change: Tensor, held: Tensor, *, rotated: bool
) -> tuple[Tensor, set[int]]:
    """``held`` [H, N, D] with a part of the mean change added to the others, and which tokens these are."""
    result, touched = held.clone().double(), set()
    for segment in layout.segments:
        own = [n for n in tokens if segment.start <= n < segment.stop]
        if segment.variant != "averaged" or not own:
            continue
        among = len(own) / (segment.stop - segment.start)
        for head in range(held.shape[0]):
            rows = [change[head, tokens.index(n)].tolist() for n in own]
            if rotated:
                rows = [turned_by_hand(row, -n) for n, row in zip(own, rows, strict=True)]
            mean = [x * among / (among + HALF) for x in mean_of(rows)]
            for n in range(segment.start, segment.stop):
                if n not in own:
                    passed = turned_by_hand(mean, n) if rotated else mean
                    result[head, n] += torch.tensor(passed, dtype=torch.float64)
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


def test_a_part_of_the_mean_change_is_passed_on(
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
        slowly(layout, tokens, change, x[0], rotated=rotated)
        for change, x, rotated in zip(changes, (held.keys, held.values), (not latent, latent), strict=True)
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


def test_who_is_touched(prepared: Store, lively: kvtool.Model) -> None:
    """Segments made for blending that have recomputed tokens: no exact ones, no text, none without such tokens."""
    layout = lay_out(prepared, PARTS, lively)
    rotations = key_rotations(lively)
    assert rotations is not None
    tokens = some_of(layout)
    passing = Drift(layout, rotations, filled(layout), torch.tensor(tokens))
    _, _, b, _, long, *_, again = layout.segments
    own = (range(segment.start, segment.stop) for segment in (b, long, again))
    assert set(passing.target.tolist()) == {n for tokens in own for n in tokens} - set(tokens)


def test_documents_alone_are_left_as_they_are(documents: Store, lively: kvtool.Model) -> None:
    layout = lay_out(documents, PARTS, lively)
    rotations = key_rotations(lively)
    assert rotations is not None
    cache, tokens = filled(layout), torch.tensor(some_of(layout))
    held = cache.layers[1]
    before = held.keys.clone()
    changes = [torch.ones(x.shape[1], len(tokens), x.shape[3]) for x in (held.keys, held.values)]
    Drift(layout, rotations, cache, tokens)(1, *changes)
    assert torch.equal(held.keys, before)


def test_a_blend_passes_on_before_the_layer_is_read(
    prepared: Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens recomputed after changed ones see the change at the next layer; those before them see nothing."""
    options = {"policy": "drift", "recompute": 0.2}
    names = ["a.txt", "b.txt", "c@home.txt"]
    with_drift = kvtool.blend(prepared, names, lively, **options)
    monkeypatch.setattr(drift, "HALF", math.inf)
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
    assert differ(with_drift.layers[2].values, without.layers[2].values) == others | later
    assert same(with_drift, naive, layout.exact)
