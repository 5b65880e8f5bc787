"""Budgets: exactly as many tokens as asked for, always the protected ones, and each method against its paper's formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.codecs.prune.budgets.budget import Budget, apportion, best
from kvtool.codecs.prune.budgets.heads import across, ada_kv, by_layer, uniform
from kvtool.codecs.prune.budgets.layers import pyramid

Method = Callable[[Sequence[Tensor], Budget], list[Tensor]]


def pyramid_alike(scores: Sequence[Tensor], budget: Budget) -> list[Tensor]:
    return by_layer(scores, budget, pyramid(scores, budget))


EXACT: dict[str, Method] = {"across": across, "ada-kv": ada_kv, "pyramid": pyramid_alike}
METHODS: dict[str, Method] = {**EXACT, "uniform": uniform}


@st.composite
def layers(draw: st.DrawFn) -> list[Tensor]:
    """Scores of up to four layers with few different values, so that many are equal, and some infinite."""
    tokens = draw(st.integers(1, 12))
    heads = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float("inf")])
    return [
        torch.tensor(draw(st.lists(values, min_size=n * tokens, max_size=n * tokens))).view(n, tokens)
        for n in heads
    ]


def budget_for(
    scores: Sequence[Tensor], share: float, sinks: int, recent: int, whole: frozenset[int] = frozenset()
) -> Budget:
    """A budget between what is always kept and everything."""
    some = Budget(1, sinks, recent, whole)
    every = sum(s.numel() for s in scores)
    least = sum(some.least(scores)) / every
    return Budget(max(least + share * (1 - least), 1e-9), sinks, recent, whole)


def first(scores: Sequence[float], always: Sequence[bool], n: int) -> list[int]:
    """The ``n`` best, by sorting."""
    order = sorted(range(len(scores)), key=lambda t: (not always[t], -scores[t], t))
    return sorted(order[:n])


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40)
@given(layers(), st.floats(0, 1), st.integers(0, 4), st.integers(0, 5), st.booleans())
def test_protected_tokens_and_whole_layers_are_kept_and_the_number_is_exact(
    name: str, scores: list[Tensor], share: float, sinks: int, recent: int, whole: bool
) -> None:
    budget = budget_for(scores, share, sinks, recent, frozenset({0}) if whole else frozenset())
    masks = METHODS[name](scores, budget)
    tokens = scores[0].shape[1]
    for index, (mask, layer) in enumerate(zip(masks, scores, strict=True)):
        assert mask.shape == layer.shape
        assert mask.dtype == torch.bool
        assert mask[:, :sinks].all()
        assert mask[:, max(tokens - recent, 0) :].all()
        assert not (whole and index == 0) or mask.all()
        # Of what may go, no better token goes than one that stays.
        free = ~budget.always(index, tokens)
        for row, kept in zip(layer, mask, strict=True):
            always = budget.always(index, tokens).tolist()
            assert kept.nonzero().flatten().tolist() == first(row.tolist(), always, int(kept.sum()))
        assert free.any() or mask.all()
    n = sum(int(mask.sum()) for mask in masks)
    if name in EXACT:
        assert n == round(budget.keep * sum(s.numel() for s in scores))


@pytest.mark.parametrize("name", METHODS)
def test_keeping_all_keeps_everything(name: str) -> None:
    scores = [torch.randn(2, 50), torch.randn(3, 50)]
    assert all(mask.all() for mask in METHODS[name](scores, Budget(1.0)))


@pytest.mark.parametrize("name", METHODS)
def test_one_token(name: str) -> None:
    assert METHODS[name]([torch.zeros(2, 1)], Budget(1.0))[0].all()
    assert METHODS[name]([torch.zeros(2, 1)], Budget(0.1, 0, 0))[0].sum() == 0
    with pytest.raises(CodecError, match=r"smallest keep .* is 1$"):
        METHODS[name]([torch.zeros(2, 1)], Budget(0.1))


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_that_is_too_small_says_what_is_possible(name: str) -> None:
    scores = [torch.randn(2, 1000)] * 2
    with pytest.raises(
        CodecError, match=r"144 always stay: of each head the first 4 and the last 32; .* 0.036$"
    ):
        METHODS[name](scores, Budget(0.03))
    assert sum(int(mask.sum()) for mask in METHODS[name](scores, Budget(0.036))) == 144
    with pytest.raises(CodecError, match=r"2072 .*, and all in layers kept whole \(1\); .* 0.518$"):
        METHODS[name](scores, Budget(0.3, whole=frozenset({1})))


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_keep_is_a_share(keep: float) -> None:
    with pytest.raises(CodecError, match=r"keep is .* above 0, and at most 1"):
        Budget(keep)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CodecError, match="layer 1: a score is NaN"):
        across([torch.zeros(1, 4), torch.full((1, 4), float("nan"))], Budget(1))


def test_uniform_keeps_the_same_number_in_each_head() -> None:
    scores = [torch.randn(3, 101), torch.randn(2, 101)]
    masks = uniform(scores, Budget(0.5, 2, 3))
    assert {n for mask in masks for n in mask.sum(1).tolist()} == {50}
    masks = uniform(scores, Budget(0.5, 2, 3, frozenset({1})))
    assert masks[1].all()
    # 252 of 505 tokens are kept, of which 202 are layer 1's.
    assert set(masks[0].sum(1).tolist()) == {round(50 / 3)}


@settings(max_examples=50)
@given(layers(), st.floats(0, 1), st.integers(0, 2), st.integers(0, 2))
def test_across_keeps_the_best_of_all(scores: list[Tensor], share: float, sinks: int, recent: int) -> None:
    budget = budget_for(scores, share, sinks, recent)
    flat = [v for layer in scores for v in layer.flatten().tolist()]
    tokens = scores[0].shape[1]
    always = [
        t % tokens < sinks or t % tokens >= tokens - recent for layer in scores for t in range(layer.numel())
    ]
    mask = torch.cat([mask.flatten() for mask in across(scores, budget)])
    n = round(budget.keep * len(flat))
    assert mask.nonzero().flatten().tolist() == first(flat, always, n)


def test_ada_kv_gives_heads_with_better_tokens_more() -> None:
    generator = torch.Generator().manual_seed(1)
    layer = torch.rand(4, 200, generator=generator) * torch.tensor([4.0, 2.0, 1.0, 0.1])[:, None]
    budget = Budget(0.25, 4, 8)
    (mask,) = ada_kv([layer], budget)
    free = 200 - 12 * 4
    best_of_all = layer[:, 4:-8].flatten().argsort(descending=True)[:free] // 188
    numbers = [int((best_of_all == head).sum()) for head in range(4)]
    expected = [12 + 0.8 * n + 0.2 * free / 4 for n in numbers]
    assert all(abs(a - b) < 1 for a, b in zip(mask.sum(1).tolist(), expected, strict=True))
    assert ada_kv([layer], budget, floor=1.0)[0].sum(1).tolist() == [50] * 4
    assert ada_kv([layer], budget, floor=0.0)[0].sum(1).tolist() == [12 + n for n in numbers]


def test_pyramid_shrinks_in_equal_steps() -> None:
    scores = [torch.randn(2, 1000)] * 5
    budget = Budget(0.2, 0, 40)
    counts = [mask.sum(1).tolist() for mask in pyramid_alike(scores, budget)]
    # 160 a head on average beside the window: 312, 236, 160, 84 and 8.
    assert counts == [[n + 40] * 2 for n in (312, 236, 160, 84, 8)]
    # The first layer would keep 1,131 of 960: it keeps all, and the last one takes up the rest.
    counts = [mask.sum(1).tolist() for mask in pyramid_alike(scores, Budget(0.62, 0, 40))]
    assert counts == [[n + 40] * 2 for n in (960, 770, 580, 390, 200)]


@settings(max_examples=100)
@given(st.data())
def test_apportion_keeps_its_bounds_and_its_sum(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e6]), min_size=n, max_size=n))
    low = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    high = [least + data.draw(st.integers(0, 20)) for least in low]
    total = data.draw(st.integers(sum(low), sum(high)))
    counts = apportion(shares, total, low, high)
    assert sum(counts) == total
    assert all(a <= c <= b for a, c, b in zip(low, counts, high, strict=True))
    # In proportion, where no bound is in the way.
    if max(shares) > 0 and all(
        a <= total * s / sum(shares) <= b for a, s, b in zip(low, shares, high, strict=True)
    ):
        assert all(abs(total * s / sum(shares) - c) < 1.001 for s, c in zip(shares, counts, strict=True))


def test_the_first_of_equal_ones_come_first() -> None:
    scores, always = torch.zeros(2, 5), torch.tensor([False, False, False, True, False])
    assert best(scores, always, torch.tensor([2, 3])).int().tolist() == [[1, 0, 0, 1, 0], [1, 1, 0, 1, 0]]
    assert apportion([1.0, 1.0, 1.0], 4, [0] * 3, [9] * 3) == [2, 1, 1]
