"""Cosines between hidden states before and after attention, against those of the families' own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor
from torch.nn.functional import cosine_similarity

import kvtool
from kvtool.engines.attention import capture
from kvtool.engines.inputs.hidden_cosine import hidden_cosine
from tests.caches import sides
from tests.families import loaded

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2
BOUND = 1e-5


def check(model: kvtool.Model, parts: Any, after: str, scale: float = 1.0) -> None:
    """``after`` names the module of a layer whose input is the sum, or whose output is added to the layer's input."""
    cache, token_ids = loaded(model, parts)
    states = [x.clone() for x in sides(cache)]
    before = hooks(model)
    cosines = hidden_cosine(model, cache, token_ids)["hidden_cosine"]
    assert hooks(model) == before
    ids = torch.cat([part.token_ids for part in parts])
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = []
    for layer in model.model.base_model.layers:
        handles += [
            layer.register_forward_pre_hook(
                lambda _, args, options: inputs.append((*args, *options.values())[0]), with_kwargs=True
            ),
            getattr(layer, after).register_forward_hook(
                lambda _, __, output: outputs.append(output[0] if isinstance(output, tuple) else output)
            ),
        ]
    try:
        with torch.no_grad():
            model.model(ids[None])
    finally:
        for handle in handles:
            handle.remove()
    for cosine, x, added in zip(cosines, inputs, outputs, strict=True):
        expected = cosine_similarity(x[0], x[0] + scale * added.view_as(x)[0], dim=-1)[-len(token_ids) :]
        assert (cosine.dtype, cosine.shape) == (torch.float32, (1,))
        assert abs(float(cosine) - float(expected.mean())) < BOUND
        assert float(cosine) < 1 - 100 * BOUND, "attention changes nothing, so equality says nothing"
    assert all(torch.equal(x, y) for x, y in zip(states, sides(cache), strict=True))


def hooks(model: kvtool.Model) -> int:
    """The number of hooks; transformers leaves some of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


NORMED = {"gemma3_text": "post_attention_layernorm", "gpt_neox": "attention"}


def test_it_is_that_of_the_familys_own_modules(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, after = parts_of(family), NORMED.get(family.config.model_type, "self_attn")
    check(family, parts, after)
    monkeypatch.setattr(capture, "SCORES", 30 * sum(len(part.token_ids) for part in parts))
    check(family, parts, after)


OTHER = {
    "granite": (t.GraniteConfig, {"residual_multiplier": 0.25}, "self_attn", 0.25),
    "olmo2": (t.Olmo2Config, {}, "post_attention_layernorm", 1.0),
    "cohere": (t.CohereConfig, {}, "self_attn", 1.0),
    "sequential": (t.GPTNeoXConfig, {"use_parallel_residual": False}, "attention", 1.0),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_ways_to_add_attention(
    name: str, save_model: Any, sizes: Any, tmp_path: Any, parts_of: Any
) -> None:
    config, options, after, scale = OTHER[name]
    model = kvtool.load_model(save_model(tmp_path / "model", config(**sizes | options)))
    check(model, parts_of(model), after, scale)
