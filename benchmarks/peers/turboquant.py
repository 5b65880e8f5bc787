"""tiny-turboquant's TinyKVCache on a KV cache (a worker: see worker.py).

The name misleads: the cache is KIVI's scheme, not TurboQuant's. Keys are quantized by channel and values by token, in
blocks of 128 tokens, and the last 128 to 255 tokens stay in float16. That is most of a short document; its
documentation's ratios are for thousands of tokens, and ``residual_len=0`` shows the packed part. Codes of 2, 3 and 4
bits are packed, others take a byte each. Scales and zero points are float16, and counted; so does the package's own
``memory_report``, to which the bytes here are held. The vector quantizer that follows the paper (``TinyQuantizer``)
is not used by its cache. The cache cannot be saved, other than by pickling it.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from worker import Method, Request, Restored, nbytes, serve

# isort: split
import torch
from tiny_turboquant import TinyKVCache


def main() -> None:
    method = Method(tiny, "TinyKVCache: KIVI's groups, the last 128 tokens in float16", "2402.02750")
    serve("tiny-turboquant", version("tiny-turboquant"), {"tiny-turboquant": method})


@torch.no_grad()
def tiny(
    request: Request,
    *,
    compression: str | None = None,
    bits: int | None = None,
    key_bits: int | None = None,
    value_bits: int | None = None,
    residual_len: int = 128,
    block_size: int = 128,
    value_group_size: int | None = None,
    outlier_channels: int | None = None,
) -> Restored:
    """The arguments are TinyKVCache's: ``compression`` (safe, balanced, compact, aggressive) or bits; 4 by default."""
    cache = TinyKVCache(
        compression,
        bits,
        key_bits,
        value_bits,
        residual_len=residual_len,
        block_size=block_size,
        value_group_size=value_group_size,
        outlier_channels=outlier_channels,
    )
    started = time.perf_counter()
    for index, (keys, values) in enumerate(request.layers):
        cache.ingest(keys[None], values[None], index)
    encoded = time.perf_counter()
    layers = []
    for index, (keys, values) in enumerate(request.layers):
        # An update by no tokens returns all that there are.
        restored = cache.update(keys[None, :, :0], values[None, :, :0], index)
        layers.append((restored[0][0], restored[1][0]))
    decoded = time.perf_counter()
    return Restored(layers, _parts(cache), encoded - started, decoded - encoded)


def _parts(cache: Any) -> dict[str, int]:
    names = {
        "codes": ("key_indices", "value_indices"),
        "scales": ("key_scales", "value_scales"),
        "zeros": ("key_zeros", "value_zeros"),
        "outliers": ("key_outlier_idx", "key_outlier_vals", "value_outlier_idx", "value_outlier_vals"),
        "residual": ("residual_keys", "residual_values"),
    }
    parts = dict.fromkeys(names, 0)
    for layer in cache.layers:
        for part, fields in names.items():
            tensors = [getattr(layer, f"_{field}") for field in fields]
            parts[part] += nbytes(*(tensor for tensor in tensors if tensor is not None))
    reported = cache.memory_report()["total_storage_bytes"]
    if sum(parts.values()) != reported:
        raise RuntimeError(f"{sum(parts.values())} bytes counted, tiny-turboquant reports {reported}")
    return parts


if __name__ == "__main__":
    main()
