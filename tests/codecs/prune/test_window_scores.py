"""Scores from the window's weights, and what wraps or joins them, against plain loops over their papers' formulas."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.codecs import CodecError, NeedsError, Rope
from kvtool.codecs.prune.scores import inputs as names
from kvtool.codecs.prune.scores.channels import think
from kvtool.codecs.prune.scores.kvcrush import kvcrush
from kvtool.codecs.prune.scores.received import sirllm
from kvtool.codecs.prune.scores.retrieval import duo_attention, razor_attention
from kvtool.codecs.prune.scores.table import HEADS
from kvtool.codecs.prune.scores.window import a2sf, cake, cake_preference, corm, keyformer, scissorhands
from kvtool.codecs.rope import turn
from tests.codecs.prune.scored import scored

tokens = st.integers(1, 12)
seeds = st.integers(0, 9)
GROUPS = ((0, 1), (2, 3))


@settings(max_examples=20)
@given(tokens, seeds)
def test_each_query_of_the_window_counts(n: int, seed: int) -> None:
    case = scored(n, seed=seed)
    before = max(n - 3, 0)
    kept, small, faded = (score(case.layer, case.inputs) for score in (corm, scissorhands, a2sf))
    for h, group in enumerate(GROUPS):
        for k in range(n):
            of_queries = [
                [(t, case.weights[q, t, k].item()) for t in range(before, n) if t >= k] for q in group
            ]
            shares = [weight * (t + 1) for pairs in of_queries for t, weight in pairs]
            if k < before:
                assert kept[h, k].item() == pytest.approx(max(shares), rel=1e-5)
            assert small[h, k].item() == -sum(share < 1 for share in shares) / 2
            sums = [sum(weight * 0.95 ** (n - 1 - t) for t, weight in pairs) for pairs in of_queries]
            assert faded[h, k].item() == pytest.approx(sum(sums) / 2, rel=1e-5)
    assert kept[:, before:].isinf().all()


@settings(max_examples=20)
@given(tokens, seeds)
def test_cake_adds_the_variance_over_the_window(n: int, seed: int) -> None:
    case = scored(n, seed=seed)
    before = max(n - 3, 0)
    scores = cake(case.layer, case.inputs, gamma=200.0, kernel=1)
    entropy = variances = 0.0
    for h, group in enumerate(GROUPS):
        for k in range(before):
            columns = [case.weights[q, before:, k].tolist() for q in group]
            mean = sum(map(statistics.fmean, columns)) / 2
            variance = sum(map(statistics.variance, columns))
            assert scores[h, k].item() == pytest.approx(mean + 200 * variance / 2, rel=1e-4)
            variances += variance
            entropy -= sum(x * math.log(x + 1e-10) for column in columns for x in column)
    assert scores[:, before:].isinf().all()
    expected = entropy ** (1 / 1.6) * variances ** (1 / 0.4) if before else 0
    assert cake_preference(case.layer, case.inputs, 1.6, 0.4) == pytest.approx(expected, rel=1e-3)


def test_keyformer_without_noise_is_the_sum_of_weights_and_noise_is_the_same_each_time() -> None:
    case = scored(9)
    first = keyformer(case.layer, case.inputs)
    assert torch.equal(first, keyformer(case.layer, case.inputs))
    assert not torch.equal(first, keyformer(case.layer, case.inputs, seed=1))
    # A query's noisy weights still sum to one.
    assert torch.allclose(first.sum(1), torch.tensor(3.0))
    draws = torch.empty(4, 3, 9).exponential_(generator=torch.Generator().manual_seed(0)).tolist()
    weights = case.inputs[names.WINDOW_WEIGHTS].tolist()
    expected = torch.zeros(2, 9)
    for q in range(4):
        for w in range(3):
            # softmax((log p - log e) / 2) is the square root of p / e, normalised.
            parts = [math.sqrt(p / e) for p, e in zip(weights[q][w], draws[q][w], strict=True)]
            expected[q // 2] += torch.tensor(parts) / sum(parts) / 2
    assert torch.allclose(keyformer(case.layer, case.inputs, temperature=2.0), expected, atol=1e-5)


def test_a_query_that_sees_none_of_the_segment_adds_nothing() -> None:
    case = scored(5)
    blind = case.inputs | {names.WINDOW_WEIGHTS: torch.zeros(4, 3, 5)}
    assert not keyformer(case.layer, blind).any()


def test_sirllm_is_the_same_in_all_heads() -> None:
    case = scored(5)
    assert torch.equal(sirllm(case.layer, case.inputs), case.inputs[names.TOKEN_ENTROPY].expand(2, 5))


def test_think_scores_channels_by_what_they_add_to_the_scores() -> None:
    case = scored(9)
    scores = think(case.layer, case.inputs)
    queries = case.inputs[names.WINDOW_QUERIES]
    for h, group in enumerate(GROUPS):
        for d in range(4):
            # The Frobenius norm of the product of the window's queries and the keys in this channel alone.
            products = [torch.outer(queries[q, :, d], case.layer.keys[h, :, d]) for q in group]
            expected = sum(product.square().mean().item() for product in products) / 2
            assert scores[h, d].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rope", [None, Rope((1.0, 0.1)), Rope((0.5,), 1.2, "interleaved", 1)])
def test_duo_attention_is_the_area_under_the_summed_weights(rope: Rope | None) -> None:
    case = scored(9)
    scores = duo_attention(case.layer, case.inputs, rope, length=20)
    scaling = 1.0 if rope is None else rope.scaling
    for h, group in enumerate(GROUPS):
        bare = case.layer.keys[h : h + 1].clone()
        if rope is not None:
            turn(bare, rope, torch.arange(9), scaling=scaling, undo=True)
        areas = []
        for q in group:
            products = []
            for t in range(20):
                query, key = case.inputs[names.QUERY_MEAN][q].view(1, 1, 4), bare.mean(1, keepdim=True)
                if rope is not None:
                    query = turn(query.clone(), rope, torch.tensor([19]), scaling=scaling)
                    key = turn(key.clone(), rope, torch.tensor([t]), scaling=scaling)
                products.append((query * key).sum().item() / 2)
            weights = torch.tensor(products).softmax(0).tolist()
            areas.append(sum(sum(weights[: t + 1]) for t in range(20)) / 20)
        assert scores[h].item() == pytest.approx(sum(areas) / 2, rel=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 14), st.floats(0, 1), seeds, st.integers(0, 2))
def test_kvcrush_keeps_the_best_and_one_of_each_group(
    n: int, heads: int, kept: int, share: float, seed: int, recent: int
) -> None:
    scores = torch.randint(0, 5, (heads, n), generator=torch.Generator().manual_seed(seed)).float()
    always = torch.arange(n) >= n - recent
    wrapped = kvcrush(scores, always, kept, share)
    free = range(max(n - recent, 0))
    kept = min(kept, len(free))
    orders = [sorted(free, key=lambda t: (-row[t], t)) for row in scores.tolist()]
    groups = int(kept * share)
    best = [set(order[: kept - groups]) for order in orders]
    halves = [set(order[: len(free) // 2]) for order in orders]
    distance = [sum((t in halves[h]) != (h % 2 == 1) for h in range(heads)) for t in free]
    rest = sorted((t for t in free if not any(t in b for b in best)), key=lambda t: (distance[t], t))
    count = min(groups, len(rest))
    chosen = {rest[i] for i in torch.linspace(0, len(rest) - 1, count).long().tolist()} if count else set()
    for h in range(heads):
        expected = [
            *[t for t in orders[h] if t in best[h]],
            *[t for t in orders[h] if t in chosen],
            *[t for t in orders[h] if t not in best[h] | chosen],
        ]
        order = wrapped[h].argsort(descending=True, stable=True).tolist()
        assert set(order[: n - len(free)]) == set(range(len(free), n))
        assert order[n - len(free) :] == expected


def test_kvcrush_wants_a_share() -> None:
    with pytest.raises(CodecError, match="share is 2, expected a number from 0 to 1"):
        kvcrush(torch.zeros(1, 4), torch.zeros(4).bool(), 2, 2)


def test_razor_attention_takes_heads_by_their_rank_among_both_kinds() -> None:
    cases = [scored(5, heads=2, group=2), scored(5, heads=1, group=2)]
    copied = [
        torch.tensor([[0.1, 0.0], [0.0, 0.9], [0.5, 0.2], [0.0, 0.0]]),
        torch.tensor([[0.3, 0.3], [0.0, 0.4]]),
    ]
    inputs = [{names.COPIED: tensor} for tensor in copied]
    # The larger of each group: 0.1 and 0.9, 0.5 and 0.2, 0.3 and 0.4. Echo ranks 2, 0, 1; induction ranks 0, 2, 1.
    scores = razor_attention([case.layer for case in cases], inputs, echo=0.25, induction=0.5)
    assert [part.tolist() for part in scores] == [[0, 0], [-2]]
    scores = razor_attention([case.layer for case in cases], inputs, echo=0.5, induction=0.25)
    assert [part.tolist() for part in scores] == [[0, 0], [-2]]
    assert razor_attention([], []) == []


@pytest.mark.parametrize("name", HEADS)
def test_scores_of_heads_by_name_read_what_they_say_they_need(name: str) -> None:
    cases = [scored(n, heads) for n, heads in ((5, 2), (5, 3), (1, 1))]
    layers, ropes = [case.layer for case in cases], [Rope((1.0, 0.1)), None, Rope((0.5,))]
    inputs = [{need: case.inputs[need] for need in HEADS[name].needs} for case in cases]
    scores = of_heads(name, layers, inputs, ropes)
    assert [part.shape for part in scores] == [(2,), (3,), (1,)]
    assert not torch.cat(scores).isnan().any()
    with pytest.raises(NeedsError):
        of_heads(name, layers, [{}] * 3, ropes)


def of_heads(name: str, layers: Any, inputs: Any, ropes: Any) -> list[torch.Tensor]:
    head = HEADS[name]
    if head.joined:
        return head.joined(layers, inputs)
    assert head.of_layer
    return [head.of_layer(*parts) for parts in zip(layers, inputs, ropes, strict=True)]


def test_kvzip_scores_a_head_by_its_largest_weight() -> None:
    case = scored(7)
    (scores,) = of_heads("kvzip-heads", [case.layer], [case.inputs], [None])
    assert scores.tolist() == [max(row) for row in case.inputs[names.REPLAYED].tolist()]
