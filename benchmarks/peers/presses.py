"""kvpress's presses on a document: tokens pruned in prefill (a worker: see worker.py).

A press works inside the model's forward pass, so the tensors given are not used: the model prefills the prefix and
the segment again in float32, with the press active, as kvpress's pipeline does. What is restored covers both. Kept
keys and values are rounded to float16 and counted with 16 bits; positions are not stored, since RoPE is in the keys.
``ratio`` is the share of tokens that is removed. ``encode_seconds`` has the prefill in it, and nothing is decoded.
Later tokens must be given positions from the prefix's and segment's full length on.

kvpress saves nothing to disk. Tokens come in the order of their scores, a different one in each head, not in that of
the document. Here are presses that keep equally many tokens in every head and layer. The others are left
out: AdaKV and KVzip keep different numbers in each head, and in kvpress they only mask keys, which frees no memory;
PyramidKV differs by layer; DuoAttention, FastKVzip, KVzap and QFilter download what was trained for other
models. ThinK prunes channels, and frees no memory either. A press sees no question here, as the cache is to serve any.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from worker import Method, Request, Restored, half, nbytes, serve

# isort: split
import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES: dict[str, tuple[type[Any], str, str]] = {
    "kvpress-random": (kvpress.RandomPress, "tokens at random", ""),
    "kvpress-streaming": (kvpress.StreamingLLMPress, "the first 4 tokens and the last", "2309.17453"),
    "kvpress-knorm": (kvpress.KnormPress, "keys of small norm", "2406.11430"),
    "kvpress-keydiff": (kvpress.KeyDiffPress, "keys unlike their mean", "2504.15364"),
    "kvpress-lagkv": (kvpress.LagKVPress, "tokens unlike the next 128", "2504.04704"),
    "kvpress-tova": (kvpress.TOVAPress, "what the last token attends to", "2401.06104"),
    "kvpress-snapkv": (kvpress.SnapKVPress, "what the last 64 tokens attend to", "2404.14469"),
    "kvpress-expected-attention": (
        kvpress.ExpectedAttentionPress,
        "what the next 512 tokens are expected to attend to",
        "2510.00636",
    ),
}


def main() -> None:
    methods = {
        name: Method(_run(press), f"kept: {summary}", paper)
        for name, (press, summary, paper) in PRESSES.items()
    }
    serve("kvpress", version("kvpress"), methods, warm_up=False)


def _run(press: type[Any]) -> Callable[..., Restored]:
    def run(request: Request, *, ratio: float = 0.5) -> Restored:
        return prefill(request, press(compression_ratio=ratio))

    return run


@torch.no_grad()
def prefill(request: Request, press: Any) -> Restored:
    model = _model(request.model)
    ids = torch.cat([request.prefix_ids, request.token_ids]).long()[None]
    cache: Any = DynamicCache()
    torch.manual_seed(0)
    started = time.perf_counter()
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    seconds = time.perf_counter() - started
    layers = [(half(layer.keys[0]), half(layer.values[0])) for layer in cache.layers]
    parts = {
        "keys": nbytes(*(keys for keys, _ in layers)),
        "values": nbytes(*(values for _, values in layers)),
    }
    return Restored(layers, parts, seconds, 0.0, covers_prefix=True)


@lru_cache(maxsize=1)
def _model(directory: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


if __name__ == "__main__":
    main()
