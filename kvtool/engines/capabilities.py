"""A model's capabilities, found by running it once and remembered for as long as the model lives."""

from __future__ import annotations

from typing import Any

from kvtool.engines.attention.cached_keys import is_attention_to_cache
from kvtool.engines.attention.check import adds_biases, is_softmax_attention
from kvtool.engines.attention.override import can_override
from kvtool.engines.once_per_model import once_per_model
from kvtool.engines.rope import Rotations, describe_rotations, find_rotations
from kvtool.model.model import Model


@once_per_model
def rope_description(model: Model) -> dict[str, Any]:
    """The model's ``identity.rope``, and each layer's rotation of its keys where running the model confirmed it."""
    return {**model.identity.rope, **describe_rotations(model)}


@once_per_model
def key_rotations(model: Model) -> Rotations | None:
    """How each layer rotates its keys (in latent attention, its values); None where that could not be found."""
    return find_rotations(model)


@once_per_model
def has_softmax_attention(model: Model) -> bool:
    """Whether attention is a softmax over scaled products in every layer, without soft caps, sinks or biases."""
    return is_softmax_attention(model)


@once_per_model
def is_replaceable(model: Model) -> bool:
    """Whether attention of ours can take the place of the model's."""
    return can_override(model)


@once_per_model
def takes_biases(model: Model) -> bool:
    """Whether biases of tokens can be added to the scores of every layer."""
    return has_softmax_attention(model) or adds_biases(model)


@once_per_model
def attends_to_cached_keys(model: Model) -> bool:
    """Whether attention multiplies queries with the very keys that are cached; in latent attention it makes others of them."""
    return is_attention_to_cache(model)
