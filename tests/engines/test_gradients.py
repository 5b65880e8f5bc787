"""Gradients with respect to cached keys and values, against what the loss does when one of them is moved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as t
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

import kvtool
from kvtool.engines.attention.replay import REQUEST
from kvtool.engines.gradients import REPEATING, gradients
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens, prefix_of

BOUND = 0.01
"""The largest difference of a slope, relative to it, that float32 and the loss's curvature explain."""
STEP, MOVED = 1e-2, 4e-3
"""At most, of an entry and of the loss: a mixture's experts change places where one is moved far."""

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values."


class Moved(DynamicCache):  # type: ignore[misc]
    """A cache that moves one entry, (layer, side, head, token, channel), by ``step`` as it is written."""

    def __init__(self, where: tuple[int, ...] = (-1,), step: float = 0.0) -> None:
        super().__init__()
        self.where, self.step = where, step

    def update(self, key_states: Any, value_states: Any, layer_idx: Any, *args: Any, **kwargs: Any) -> Any:
        states = [key_states.clone(), value_states.clone()]
        layer, *entry = self.where
        if layer == layer_idx:
            side, head, token, channel = entry
            states[side][0, head, token, channel] += self.step
        return super().update(*states, layer_idx, *args, **kwargs)


@torch.no_grad()
def loss(
    model: kvtool.Model, prefix: list[int], ids: list[int], where: tuple[int, ...] = (-1,), step: float = 0.0
) -> float:
    """The loss with one entry moved as it is written, and then in the cache."""
    logits = model.model(torch.tensor([prefix + ids]), past_key_values=Moved(where, step)).logits[0].double()
    predicted = ids if prefix else ids[1:]
    start = len(prefix + ids) - len(predicted)
    read = cross_entropy(logits[start - 1 : -1], torch.tensor(predicted), reduction="sum")
    cache = DynamicCache()
    model.model(torch.tensor([prefix + ids]), past_key_values=cache)
    if step:
        layer, side, *entry = where
        [cache.layers[layer].keys, cache.layers[layer].values][side][(0, *entry)] += step
    again = torch.tensor([document_tokens(model, REQUEST) + ids])
    logits = model.model(again, past_key_values=cache).logits[0].double()
    repeated = cross_entropy(logits[-len(ids) - 1 : -1], torch.tensor(ids), reduction="sum")
    return float(read + REPEATING * repeated)


def check_slopes(model: kvtool.Model, prefix: list[int], ids: list[int]) -> None:
    sample = gradients(model, prefix, ids)
    assert sample.gradients is not None
    for index, (layer, gradient) in enumerate(zip(sample.kv.layers, sample.gradients, strict=True)):
        assert torch.equal(layer.positions, gradient.positions)
        for side, name in enumerate(("keys", "values")):
            slopes, states = getattr(gradient, name), getattr(layer, name)
            assert slopes.shape == states.shape
            assert (slopes.dtype, slopes.device.type) == (torch.float32, "cpu")
            head, token, channel = (int(x) for x in torch.unravel_index(slopes.abs().argmax(), slopes.shape))
            where = (index, side, head, len(prefix) + token, channel)
            step = min(STEP, MOVED / slopes[head, token, channel].abs().item())
            up, down = (loss(model, prefix, ids, where, s) for s in (step, -step))
            slope = (up - down) / (2 * step)
            assert math.isclose(slope, slopes[head, token, channel], rel_tol=BOUND), (index, name)


def test_a_gradient_is_the_slope_of_the_loss(family: kvtool.Model) -> None:
    prefix, ids = list(prefix_of(family).token_ids), document_tokens(family, TEXT)
    check_slopes(family, prefix, ids)


def test_without_a_prefix_the_first_token_is_not_foretold(tiny: kvtool.Model) -> None:
    check_slopes(tiny, [], document_tokens(tiny, TEXT))


def test_the_cache_is_the_one_that_prefill_makes(family: kvtool.Model) -> None:
    prefix, ids = prefix_of(family).token_ids, document_tokens(family, TEXT)
    sample, kv = gradients(family, prefix, ids), Prefiller(family, prefix).one(ids)
    assert torch.equal(sample.kv.token_ids, kv.token_ids)
    assert sample.kv.rope == kv.rope
    for one, other in zip(sample.kv.layers, kv.layers, strict=True):
        assert torch.equal(one.positions, other.positions)
        for x, y in ((one.keys, other.keys), (one.values, other.values)):
            assert not x.requires_grad
            assert x.dtype == y.dtype
            assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_what_is_too_long_is_cut(tiny: kvtool.Model) -> None:
    ids = document_tokens(tiny, TEXT)
    cut, alone = gradients(tiny, [1, 2], ids, tokens=20), gradients(tiny, [1, 2], ids[:20])
    assert cut.kv.token_ids.tolist() == ids[:20]
    assert torch.equal(cut.gradients[1].keys, alone.gradients[1].keys)
    request = len(document_tokens(tiny, REQUEST))
    long = gradients(tiny, [1] * (tiny.context - request - 10), ids)
    assert long.kv.token_ids.tolist() == ids[:5]
    assert long.gradients[0].keys.shape[1] == 5
    assert gradients(tiny, [1] * (tiny.context + 1), ids).kv.n_tokens == 0


def test_the_model_is_left_as_it_was(tiny: kvtool.Model) -> None:
    with torch.no_grad():
        gradients(tiny, [1, 2], document_tokens(tiny, TEXT))
    parameters = list(tiny.model.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)


def test_bfloat16_gives_the_same_up_to_its_precision(tiny: kvtool.Model) -> None:
    ids = document_tokens(tiny, TEXT)
    rough = gradients(kvtool.load_model(tiny.directory, dtype="bfloat16"), [1, 2], ids)
    for one, other in zip(rough.gradients, gradients(tiny, [1, 2], ids).gradients, strict=True):
        for x, y in ((one.keys, other.keys), (one.values, other.values)):
            assert x.dtype == torch.float32
            assert (x - y).norm() < 0.2 * y.norm()  # measured: 0.10
    assert rough.kv.dtype == torch.bfloat16


def test_a_model_that_overflows_is_said(tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kvtool.engines.gradients.cross_entropy", lambda *a, **k: cross_entropy(*a, **k) * math.inf
    )
    with pytest.raises(ModelError, match=r"not finite in float32.*--recipe kivi"):
        gradients(tiny, [1, 2], document_tokens(tiny, TEXT))


def test_a_family_without_a_cache_is_refused(save_model: Any, sizes: Any, tmp_path: Any) -> None:
    config = t.RwkvConfig(**sizes, attention_hidden_size=32)
    model = kvtool.load_model(save_model(tmp_path / "model", config))
    with pytest.raises(ModelError, match=r"\brwkv\b.*--recipe kivi"):
        gradients(model, [1, 2], document_tokens(model, TEXT))


def test_layers_without_gradients_are_refused(tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tiny.model.model.layers[1].self_attn
    forward = layer.k_proj.forward
    monkeypatch.setattr(layer.k_proj, "forward", lambda x: forward(x).detach())
    with pytest.raises(ModelError, match=r"\bllama\b.*gradients"):
        gradients(tiny, [1, 2], document_tokens(tiny, TEXT))
