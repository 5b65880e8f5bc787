"""Scores against plain loops over their papers' formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.codecs import CodecError, NeedsError, Rope
from kvtool.codecs.prune.scores import inputs as names
from kvtool.codecs.prune.scores.cache import keydiff, l2_norm, streaming_llm, value_aware
from kvtool.codecs.prune.scores.inputs import read
from kvtool.codecs.prune.scores.received import h2o
from kvtool.codecs.prune.scores.replay import GOES_ON
from kvtool.codecs.prune.scores.statistics import expected_attention, mean_rotation
from kvtool.codecs.prune.scores.table import SCORES
from kvtool.codecs.prune.scores.window import snapkv
from kvtool.codecs.rope import turn
from tests.codecs.prune.scored import scored

ROPES = [
    None,
    Rope((1.0, 0.1)),
    Rope((1.0, 0.1), layout="interleaved"),
    Rope((0.5,), scaling=1.2, start=1),
    Rope(()),
]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 9])
def test_every_score_has_a_number_for_each_token_of_each_head(name: str, tokens: int) -> None:
    case = scored(tokens)
    given_inputs = {name: case.inputs[name] for name in SCORES[name].needs}
    scores = SCORES[name].of(case.layer, given_inputs, ROPES[1])
    assert scores.shape == (2, tokens)
    assert scores.dtype == torch.float32
    assert not scores.isnan().any()
    half = dataclasses.replace(
        case.layer, keys=case.layer.keys.bfloat16(), values=case.layer.values.bfloat16()
    )
    assert SCORES[name].of(half, given_inputs, ROPES[1]).dtype == torch.float32


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.needs])
def test_a_missing_input_is_named(name: str) -> None:
    with pytest.raises(NeedsError, match=rf"needs ({'|'.join(SCORES[name].needs)}), which is not given"):
        SCORES[name].of(scored(5).layer, {}, None)


@pytest.mark.parametrize("name", names.__dict__["_AXES"])
def test_an_input_of_another_shape_is_refused(name: str) -> None:
    case = scored(5)
    assert read(case.inputs, name, case.layer).dtype == torch.float32
    for wrong in (torch.zeros(5, 4, 3, 2), torch.zeros(3, 7), torch.zeros(7)):
        with pytest.raises(CodecError, match=rf"input '{name}' is .* for keys \[2, 5, 4\]"):
            read({name: wrong}, name, case.layer)


def test_query_heads_are_a_multiple_of_key_heads() -> None:
    with pytest.raises(CodecError, match=r"expected \[Q, W, T\]"):
        read({names.WINDOW_WEIGHTS: torch.zeros(3, 2, 5)}, names.WINDOW_WEIGHTS, scored(5).layer)


tokens = st.integers(1, 12)
seeds = st.integers(0, 9)


@settings(max_examples=20)
@given(tokens, seeds)
def test_scores_of_keys_alone(n: int, seed: int) -> None:
    case = scored(n, seed=seed)
    sizes, kinds, places = l2_norm(case.layer, {}), keydiff(case.layer, {}), streaming_llm(case.layer, {})
    for h, keys in enumerate(case.layer.keys.double().tolist()):
        norms = [math.sqrt(sum(x * x for x in key)) for key in keys]
        mean = [sum(key[d] / norm for key, norm in zip(keys, norms, strict=True)) / n for d in range(4)]
        length = math.sqrt(sum(x * x for x in mean))
        for t in range(n):
            cosine = sum(a * b for a, b in zip(keys[t], mean, strict=True)) / norms[t] / length
            assert sizes[h, t].item() == pytest.approx(-norms[t], rel=1e-5)
            assert kinds[h, t].item() == pytest.approx(-cosine, abs=1e-5)
            assert places[h, t].item() == t


@settings(max_examples=20)
@given(tokens, seeds, st.sampled_from([1, 3, 5, 7]), st.sampled_from(["mean", "max"]))
def test_snapkv_pools_the_mean_weight_of_the_window(n: int, seed: int, kernel: int, pooling: str) -> None:
    case = scored(n, seed=seed)
    scores, before = snapkv(case.layer, case.inputs, kernel, pooling), n - min(3, n)
    for h in range(2):
        mean = [
            sum(case.weights[q, t, k].item() for q in (2 * h, 2 * h + 1) for t in range(before, n)) / 6
            for k in range(before)
        ]
        for k in range(before):
            near = mean[max(k - kernel // 2, 0) : k + kernel // 2 + 1]
            expected = max(near) if pooling == "max" else sum(near) / kernel
            assert scores[h, k].item() == pytest.approx(expected, rel=1e-5)
    assert scores[:, before:].isinf().all()


@pytest.mark.parametrize(("kernel", "pooling"), [(4, "mean"), (0, "mean"), (5, "sum")])
def test_pooling_is_of_an_odd_number(kernel: int, pooling: str) -> None:
    case = scored(9)
    with pytest.raises(CodecError, match="expected mean or max of an odd number"):
        snapkv(case.layer, case.inputs, kernel, pooling)


@settings(max_examples=20)
@given(tokens, seeds)
def test_h2o_sums_what_is_received_and_vatp_weighs_it(n: int, seed: int) -> None:
    case = scored(n, seed=seed)
    scores = h2o(case.layer, case.inputs)
    weighed = value_aware(scores, case.layer)
    for h in range(2):
        for k in range(n):
            mean = sum(case.weights[q, t, k].item() for q in (2 * h, 2 * h + 1) for t in range(k, n)) / 2
            size = sum(abs(x) for x in case.layer.values[h, k].tolist())
            assert scores[h, k].item() == pytest.approx(mean, rel=1e-5)
            assert weighed[h, k].item() == pytest.approx(mean * size, rel=1e-5)
    assert value_aware(torch.full((2, n), torch.inf), case.layer).isinf().all()


@pytest.mark.parametrize("rope", ROPES)
def test_expected_attention_is_the_mean_of_lognormal_weights(rope: Rope | None) -> None:
    case = scored(9)
    scores = expected_attention(case.layer, case.inputs, rope, future=6, sinks=2, epsilon=0.02)
    turned = torch.eye(4)[:, None].repeat(1, 6, 1)
    if rope is not None:
        # Rows are the turned unit vectors, at each of the six positions.
        turned = turn(turned.contiguous(), rope, torch.arange(9, 15), scaling=rope.scaling)
    matrix = turned.mean(1).T
    for h in range(2):
        weights = torch.zeros(7)
        for q in (2 * h, 2 * h + 1):
            mean = matrix @ case.inputs[names.QUERY_MEAN][q]
            covariance = matrix @ case.inputs[names.QUERY_COVARIANCE][q] @ matrix.T
            exponents = [
                (key @ mean).item() / 2 + (key @ covariance @ key).item() / 8
                for key in case.layer.keys[h, 2:]
            ]
            parts = [math.exp(x) for x in exponents]
            weights += torch.tensor([part / sum(parts) / 2 for part in parts])
        expected = (weights + 0.02) * case.layer.values[h, 2:].norm(dim=-1)
        assert torch.allclose(scores[h, 2:], expected, rtol=1e-4)
    assert scores[:, :2].isinf().all()
    assert torch.allclose(mean_rotation(rope, range(9, 15), 4), matrix, atol=1e-6)


def test_after_a_prefix_no_token_is_a_sink() -> None:
    case = scored(9)
    layer = dataclasses.replace(case.layer, positions=case.layer.positions + 4)
    assert not expected_attention(layer, case.inputs, None).isinf().any()


def test_a_text_that_goes_on_counts_beside_the_replay() -> None:
    case = scored(9)
    score = SCORES["replayed-and-moved"].of(case.layer, case.inputs)
    keys = case.layer.keys.repeat_interleave(2, 0)
    weights = (case.inputs[names.MOVED_QUERIES] @ keys.mT / math.sqrt(keys.shape[2])).softmax(-1)
    attention = weights.square().view(2, 2, 9, 9).mean((1, 2)).sqrt()
    expected = case.inputs[names.REPLAYED] + GOES_ON * attention
    assert torch.allclose(score, expected, rtol=1e-5)
