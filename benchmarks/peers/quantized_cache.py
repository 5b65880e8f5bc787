"""transformers' QuantizedCache on a KV cache: the backends quanto, HQQ and fp8 (a worker: see worker.py).

The cache is given the tensors as a prefill gives them, and asked for them again as the next forward pass does. What it
would store are the packed codes and a scale and a zero point for each group, in the cache's dtype: 4 bits are 4.5 bits
a value in groups of 64. It keeps recent tokens in full only once tokens are generated: a prefill is quantized whole.

Which values make a group is easily misread. quanto with axis 0, its default and what the documentation recommends,
groups 64 neighbours in memory: one token's channels, where the head size is 64. -1 groups 64 tokens of one channel,
as KIVI does for keys. HQQ with axis 1, what the documentation recommends, groups one token's channels too. 0, its
default in code, groups 64 values that lie evenly over the whole tensor: one channel over all heads if heads x tokens is
a multiple of 64, a mixture of channels otherwise. quanto refuses to group by channel what is no multiple, HQQ gets
worse; so both are given a multiple as the prefill, and the rest, kept in full, in a second call. Codes that share a byte
HQQ can only pack from as many groups, so it gets a multiple of 2 tokens for 4 bits, and of 4 for 2. HQQ's 3 bits take
3.5, and decode with both axes 0 alone.

fp8 has one scale for each tensor, frozen at prefill. None of these caches can be saved, other than by pickling them.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker import Method, Request, Restored, nbytes, serve

# isort: split
import torch
from torch import Tensor
from transformers import AutoConfig, QuantizedCache

GROUP = 64


def main() -> None:
    # quanto compiles its unpacking with ninja, which lies beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kivi = "2402.02750"
    methods = {
        "transformers-quanto": Method(quanto, "QuantizedCache, quanto: min-max in groups", kivi),
        "transformers-hqq": Method(hqq, "QuantizedCache, HQQ: groups, zero points optimised", kivi),
        "transformers-fp8": Method(fp8, "QuantizedCache, fp8: E4M3, one scale a tensor"),
    }
    packages = f"optimum-quanto {version('optimum-quanto')}, hqq {version('hqq')}"
    serve("transformers", f"{version('transformers')} ({packages})", methods)


def quanto(
    request: Request, *, bits: int = 4, axis_key: int = 0, axis_value: int = 0, q_group_size: int = GROUP
) -> Restored:
    """``bits`` 2 or 4; axes 0 or -1."""
    axes = {"axis_key": axis_key, "axis_value": axis_value}
    cache = _cache(request, "quanto", nbits=bits, q_group_size=q_group_size, **axes)
    return _restore(request, cache, multiple=q_group_size if any(axes.values()) else 1)


def hqq(
    request: Request, *, bits: int = 4, axis_key: int = 1, axis_value: int = 1, q_group_size: int = GROUP
) -> Restored:
    """``bits`` 1, 2, 3, 4 or 8; axes 0 or 1."""
    axes = {"axis_key": axis_key, "axis_value": axis_value}
    if bits == 3 and any(axes.values()):
        raise ValueError("HQQ's 3 bits cannot be decoded in this shape but with axis_key=0 and axis_value=0")
    cache = _cache(request, "hqq", nbits=bits, q_group_size=q_group_size, **axes)
    return _restore(request, cache, multiple=8 // bits if all(axes.values()) else q_group_size)


def fp8(request: Request) -> Restored:
    return _restore(request, _cache(request, "fp8"))


def _cache(request: Request, backend: str, **arguments: int) -> QuantizedCache:
    return QuantizedCache(backend, AutoConfig.from_pretrained(request.model), **arguments)


@torch.no_grad()
def _restore(request: Request, cache: Any, multiple: int = 1) -> Restored:
    """``multiple``: the tokens of the prefill are a multiple of it."""
    tokens = request.layers[0][0].shape[1]
    prefill = tokens - tokens % multiple
    if not prefill:
        raise ValueError(f"groups of {multiple} tokens need as many tokens; the segment has {tokens}")
    started = time.perf_counter()
    for index, (keys, values) in enumerate(request.layers):
        cache.update(keys[None, :, :prefill], values[None, :, :prefill], index)
        if prefill < tokens:
            cache.update(keys[None, :, prefill:], values[None, :, prefill:], index)
    encoded = time.perf_counter()
    layers = []
    for index, (keys, values) in enumerate(request.layers):
        # An update by no tokens returns all that there are.
        restored = cache.update(keys[None, :, :0], values[None, :, :0], index)
        layers.append((restored[0][0], restored[1][0]))
    decoded = time.perf_counter()
    parts = {"codes": 0, "scales": 0, "zeros": 0, "residual": 0}
    for layer in cache.layers:
        for side in (layer._quantized_keys, layer._quantized_values):
            for name, tensor in _stored(side).items():
                parts[name] += nbytes(tensor)
        parts["residual"] += nbytes(layer.keys, layer.values)
    return Restored(layers, parts, encoded - started, decoded - encoded)


def _stored(side: Any) -> dict[str, Tensor]:
    """What one side of a layer is stored as, whichever backend has made it."""
    if not isinstance(side, tuple):  # quanto's tensor subclass
        return {"codes": side._data._data, "scales": side._scale, "zeros": side._shift}
    codes, more = side
    if isinstance(more, dict):  # HQQ
        return {"codes": codes, "scales": more["scale"], "zeros": more["zero"]}
    return {"codes": codes, "scales": more}


if __name__ == "__main__":
    main()
