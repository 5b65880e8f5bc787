"""What is found out, or done, by running a model, once for as long as the model lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from kvtool.model.model import Model

T = TypeVar("T")


def once_per_model(function: Callable[[Model], T]) -> Callable[[Model], T]:
    """``function``, run once for each model; what it raises is not remembered."""
    known: WeakKeyDictionary[Model, T] = WeakKeyDictionary()

    @wraps(function)
    def recall(model: Model) -> T:
        if model not in known:
            known[model] = function(model)
        return known[model]

    return recall
