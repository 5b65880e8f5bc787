"""A pretended device, so that code for GPUs is run where there is none.

Its tensors hold others on the CPU, and give what these give. An operation on tensors of both devices fails, as it would on a
GPU, unless one has no axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from kvtool.kernels import dispatch, reference

DEVICE = torch.device("meta")
"""Torch knows of it, and needs no driver for it."""

CPU = torch.device("cpu")


class _Moved(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Moved:
        moved: _Moved = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        moved.held = held
        return moved

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


def _compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    moved = [isinstance(x, _Moved) for x in given]
    name = function.overloadpacket.__name__
    if any(moved) and name not in ("_to_copy", "copy_"):
        here = [x for x in given if not isinstance(x, _Moved) and x.ndim]
        assert not here or name in INDEXING, f"{function} got tensors of two devices"
    asked = kwargs.get("device")
    away = torch.device(asked) == DEVICE if asked is not None else any(moved)
    if name == "copy_":
        away = isinstance(args[0], _Moved)
    kwargs = {**kwargs, "device": CPU} if asked is not None else kwargs
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    result = function(*held_args, **held_kwargs)
    if function._schema.is_mutable and not isinstance(result, (tuple, list)):
        return args[0] if name.endswith("_") else kwargs.get("out", args[0])
    return tree_map(lambda x: _Moved(x) if away and isinstance(x, Tensor) else x, result)


INDEXING = ("index", "index_put_", "_index_put_impl_")
"""Which take indices from the CPU too, as CUDA's do."""


def _held(x: Any) -> Any:
    return x.held if isinstance(x, _Moved) else x


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Gives the device. Kernels compute there as the reference does."""

    class Kernels:
        def __getattr__(self, name: str) -> Any:
            kernel = getattr(reference, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                result = kernel(*map(_held, args), **kwargs)
                return tree_map(lambda x: _Moved(x) if isinstance(x, Tensor) else x, result)

            return call

    own = dispatch._for
    monkeypatch.setattr(dispatch, "_for", lambda x: Kernels() if isinstance(x, _Moved) else own(x))
    with _Mode():
        yield DEVICE


def back(tensor: Tensor) -> Tensor:
    """A tensor of ``elsewhere``, on the CPU. Fails for one that is there already."""
    assert isinstance(tensor, _Moved), f"on {tensor.device}"
    return tensor.held
