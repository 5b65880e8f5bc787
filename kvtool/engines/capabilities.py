"""A model's capabilities, found by running it once and remembered for as long as the model lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from kvtool.engines.attention.softmax_check import is_softmax_attention
from kvtool.engines.rope import Rotations, describe_rotations, find_rotations
from kvtool.model.model import Model

T = TypeVar("T")


def _remembered(find: Callable[[Model], T]) -> Callable[[Model], T]:
    """``find``, run once for each model."""
    known: WeakKeyDictionary[Model, T] = WeakKeyDictionary()

    @wraps(find)
    def recall(model: Model) -> T:
        if model not in known:
            known[model] = find(model)
        return known[model]

    return recall


@_remembered
def rope_description(model: Model) -> dict[str, Any]:
    """The model's ``identity.rope``, and each layer's rotation of its keys where running the model confirmed it."""
    return {**model.identity.rope, **describe_rotations(model)}


@_remembered
def key_rotations(model: Model) -> Rotations | None:
    """How each layer rotates its keys (in latent attention, its values); None where that could not be found."""
    return find_rotations(model)


@_remembered
def has_softmax_attention(model: Model) -> bool:
    """Whether attention is a softmax over scaled products in every layer, without soft caps, sinks or biases."""
    return is_softmax_attention(model)
