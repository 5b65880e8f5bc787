"""How unexpected tokens are, against the logits of a plain forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvtool
from kvtool.engines.inputs import token_entropy as module
from kvtool.engines.inputs.token_entropy import token_entropy
from tests.caches import sides
from tests.families import loaded

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2


def check(model: kvtool.Model, parts: Any) -> None:
    cache, token_ids = loaded(model, parts)
    states = [x.clone() for x in sides(cache)]
    entropy = token_entropy(model, cache, token_ids)["token_entropy"]
    ids = torch.cat([part.token_ids for part in parts])
    with torch.no_grad():
        likelihoods = model.model(ids[None]).logits[0].log_softmax(-1)
    truth = torch.zeros(len(ids))
    truth[1:] = -likelihoods[:-1].gather(1, ids[1:, None])[:, 0]
    assert len(entropy) == len(cache.layers)
    for layer in entropy:
        assert (layer.dtype, layer.shape) == (torch.float32, token_ids.shape)
        assert (layer - truth[len(ids) - len(token_ids) :]).abs().max() < 1e-4
    assert all(torch.equal(x, y) for x, y in zip(states, sides(cache), strict=True))


def test_it_is_what_a_plain_forward_predicts(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    check(family, parts)
    monkeypatch.setattr(module, "LOGITS", 7 * family.text_config.vocab_size)
    check(family, parts)


def test_logits_with_a_soft_cap(softcapped: Any, parts_of: Any) -> None:
    check(softcapped, parts_of(softcapped))


def test_the_first_token_of_all_is_not_predicted(tiny: kvtool.Model, parts_of: Any) -> None:
    parts = parts_of(tiny, system=TEXT)[:1]
    check(tiny, parts)
    assert token_entropy(tiny, *loaded(tiny, parts))["token_entropy"][0][0] == 0


def test_a_segment_of_one_token(tiny: kvtool.Model, parts_of: Any) -> None:
    check(tiny, parts_of(tiny, "a"))
