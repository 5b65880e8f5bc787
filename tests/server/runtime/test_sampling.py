"""Tokens are drawn as the model's probabilities say, and from no less than one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtool.engines.sampling import Sampling
from kvtool.server.runtime.sampling import Sampler

SMALLEST = 5e-324

logits = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30).map(torch.tensor)


@given(
    logits=logits,
    temperature=st.sampled_from([SMALLEST, 1e-30, 1e-3, 1.0, 2.0]),
    top_p=st.sampled_from([SMALLEST, 1e-30, 0.1, 0.999, 1.0]),
    seed=st.integers(),
)
def test_what_is_drawn_is_among_the_likeliest(
    logits: torch.Tensor, temperature: float, top_p: float, seed: int
) -> None:
    sampling = Sampling(temperature, top_p, seed)
    token = Sampler(sampling, [], []).sample(logits).token
    assert token == Sampler(sampling, [], []).sample(logits).token
    chances = ((logits.double() - logits.max()) / temperature).softmax(-1)
    likelier = chances[chances > chances[token]].sum()
    assert chances[token] == chances.max() or likelier < top_p
    if temperature == SMALLEST:
        assert logits[token] == logits.max()


def test_they_come_as_often_as_they_should() -> None:
    sampler = Sampler(Sampling(temperature=0.5, seed=1), [], [])
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = torch.bincount(torch.tensor([sampler.sample(logits).token for _ in range(4000)])) / 4000
    assert drawn.tolist() == pytest.approx((logits / 0.5).softmax(-1).tolist(), abs=0.03)
