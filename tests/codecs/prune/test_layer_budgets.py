"""How layers share a budget out among themselves, against their papers' formulas."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.codecs import CodecError, NeedsError
from kvtool.codecs.prune.budgets.budget import Budget
from kvtool.codecs.prune.budgets.heads import ada_kv, by_class, by_layer
from kvtool.codecs.prune.budgets.layers import cake, d2o, prefix_kv, squeeze
from kvtool.codecs.prune.budgets.table import SHARES
from tests.codecs.prune.scored import scored


def received(seed: int, layers: int = 3, heads: int = 2, tokens: int = 60) -> list[torch.Tensor]:
    """Weights that fall off faster the deeper the layer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(heads, tokens, generator=generator) ** (1 + 3 * n) for n in range(layers)]


def test_cake_gives_layers_their_preference_and_the_others_what_one_cannot_hold() -> None:
    scores = [torch.rand(2, 100)] * 3
    # 120 tokens are beside the sinks, in parts of 1, 2 and 3.
    masks = by_layer(scores, Budget(0.22, 2, 0), cake(scores, [0.5, 1.0, 1.5]))
    assert [int(mask.sum()) for mask in masks] == [24, 44, 64]
    # The last one cannot hold 13 of 15 parts of 420: it is full, and the first two share the rest as 1 to 1.
    masks = by_layer(scores, Budget(0.72, 2, 0), cake(scores, [1.0, 1.0, 13.0]))
    assert [int(mask.sum()) for mask in masks] == [116, 116, 200]
    assert [int(m.sum()) for m in ada_kv(scores, Budget(0.22, 2, 0), cake(scores, [0.5, 1.0, 1.5]))] == [
        24,
        44,
        64,
    ]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.7, 0.75, 0.9, 0.95]), min_size=1, max_size=8))
def test_squeeze_gives_less_to_the_layers_that_change_least(cosines: list[float]) -> None:
    scores = [torch.zeros(2, 10)] * len(cosines)
    shares = squeeze(scores, cosines, part=0.25)
    assert sum(shares) == pytest.approx(2 * len(cosines))
    values = sorted(cosines)
    if len(set(values)) < 3:
        assert shares == [2] * len(cosines)
        return

    def squares(run: list[float]) -> float:
        return sum((value - math.fsum(run) / len(run)) ** 2 for value in run)

    cuts = list(combinations(range(1, len(values)), 2))
    costs = [squares(values[:a]) + squares(values[a:b]) + squares(values[b:]) for a, b in cuts]
    lowest = {values[b] for (_, b), cost in zip(cuts, costs, strict=True) if cost < min(costs) + 1e-9}
    small = {cosine for cosine, share in zip(cosines, shares, strict=True) if share == 0.5}
    assert min(small) in lowest
    assert small == {cosine for cosine in cosines if cosine >= min(small)}


def test_squeeze_wants_a_cosine_for_each_layer() -> None:
    with pytest.raises(CodecError, match="cosines are 1, expected 2"):
        squeeze([torch.zeros(1, 2)] * 2, [0.5])


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_prefix_kv_keeps_the_same_share_of_the_weights_in_each_layer(keep: float) -> None:
    layers = received(1)
    budget = Budget(keep, 0, 0)
    shares = prefix_kv(layers, budget)
    assert abs(sum(shares) - keep * 360) <= 6
    sums = [layer.sum(0).sort(descending=True).values for layer in layers]
    retained = [float(s[: int(n / 2)].sum() / s.sum()) for s, n in zip(sums, shares, strict=True)]
    # One token more or less in each layer is the grain.
    assert max(retained) - min(retained) < 0.05
    assert shares[0] > shares[1] > shares[2]
    masks = by_layer(layers, budget, shares)
    assert sum(int(mask.sum()) for mask in masks) == round(keep * 360)


def test_prefix_kv_leaves_whole_layers_out_and_bears_silence() -> None:
    layers = [torch.zeros(2, 10), *received(2, 2, 2, 10)]
    budget = Budget(0.7, 1, 1, frozenset({1}))
    masks = by_layer(layers, budget, prefix_kv(layers, budget))
    assert masks[1].all()
    assert sum(int(mask.sum()) for mask in masks) == 42
    assert all(mask.all() for mask in by_layer(layers, Budget(1), prefix_kv(layers, Budget(1))))


def test_d2o_gives_more_where_attention_is_even() -> None:
    layers = received(3)
    layers[0][1] *= 3
    shares = d2o(layers)
    numbers = []
    for layer in layers:
        variances = [float(torch.tensor(row).var()) for row in layer.tolist()]
        spread = max(variances) - min(variances) + 1e-6
        numbers.append(sum((v - min(variances)) / spread for v in variances) / 2)
    parts = [math.exp(-number) for number in numbers]
    assert shares == pytest.approx([2 * part / sum(parts) for part in parts], rel=1e-4)
    assert d2o([torch.zeros(2, 1)]) == [2.0]


def test_retrieval_heads_keep_all_and_the_others_sinks_and_a_window() -> None:
    scores = [torch.zeros(3, 100), torch.zeros(2, 100)]
    importance = [torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.9, 0.2])]
    # 75 tokens are always kept, and 85 more are a head: there is room for two, and not for the third.
    masks = by_class(scores, importance, Budget(0.6, 5, 10))
    assert [mask.sum(1).tolist() for mask in masks] == [[15, 100, 15], [100, 15]]
    assert masks[0][0].nonzero().flatten().tolist() == [*range(5), *range(90, 100)]
    assert all(mask.all() for mask in by_class(scores, importance, Budget(1.0, 5, 10)))


@pytest.mark.parametrize("name", SHARES)
def test_shares_by_name_read_what_they_say_they_need(name: str) -> None:
    cases = [scored(40, seed=seed) for seed in range(4)]
    layers, scores = [case.layer for case in cases], [torch.rand(2, 40) for _ in cases]
    inputs = [{name: case.inputs[name] for name in SHARES[name].needs} for case in cases]
    budget = Budget(0.5, 2, 4)
    shares = SHARES[name].of(scores, budget, layers, inputs)
    assert len(shares) == 4
    for masks in (by_layer(scores, budget, shares), ada_kv(scores, budget, shares)):
        assert sum(int(mask.sum()) for mask in masks) == 160
    if SHARES[name].needs:
        with pytest.raises(NeedsError):
            SHARES[name].of(scores, budget, layers, [{}] * 4)
