"""Runs a transformers model over token ids, into a ``DocumentCache``.

No model-specific code: what differs between families is read from the config (window sizes) or passed through the
public forward (``position_ids``, a 4-D ``attention_mask``, a cache).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

from kvtool.codecs import KV, LayerKV
from kvtool.engines.cache import DocumentCache
from kvtool.errors import ModelError
from kvtool.model.model import Model

STEP_TOKENS = 1024
"""Tokens of one forward pass. More are hardly faster, and activations grow with them."""

SHARED = -1
"""The owner of tokens that every row of a pass sees."""

Runner = Callable[[Callable[[], None]], object]
"""Runs one pass of the model, and returns when it is done: at once, or in the thread that the model belongs to."""

_GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"
_KINDS = {"full_attention", "sliding_attention"}


def windows(model: Model) -> list[int | None]:
    """For each layer, how many positions back it sees, or None for all.

    Raises ``ModelError``, naming the family, for a model whose state is not one key and value for every token in
    every layer: recurrent and hybrid models, chunked attention, layers that share a cache, encoder-decoders.
    """
    config, family = model.text_config, model.config.model_type
    if model.config.is_encoder_decoder:
        raise ModelError(model.name, f"{family} is an encoder-decoder", "kvtool caches decoder-only models")
    kinds, options = get_layer_types_and_kwargs(config)
    if strange := sorted(set(kinds) - _KINDS):
        raise ModelError(
            model.name,
            (
                f"{family} has layers of kind {', '.join(strange)}, whose state is not keys and values of "
                "every token"
            ),
            "kvtool caches models with full and sliding-window attention",
        )
    return [option.get("sliding_window") for option in options]


def new_cache(model: Model, capacity: int) -> DocumentCache:
    return DocumentCache(len(windows(model)), capacity=capacity)


def at_once(forward: Callable[[], None]) -> None:
    forward()


@torch.no_grad()
def feed(
    model: Model,
    token_ids: Sequence[int],
    cache: DocumentCache,
    *,
    step: int = STEP_TOKENS,
    on_step: Callable[[int], None] = lambda _: None,
    run: Runner = at_once,
) -> None:
    """Runs ``token_ids`` behind what ``cache`` holds, ``step`` at a time, so that memory stays at one step's.

    ``on_step`` is called with each step's number of tokens, in the caller's thread wherever ``run`` runs them.
    """
    expected = cache.get_seq_length() + len(token_ids)
    for start in range(0, len(token_ids), step):
        some = token_ids[start : start + step]
        run(partial(_forward, model, some, cache))
        on_step(len(some))
    _refuse_partial(model, cache, expected)


@torch.no_grad()
def _forward(model: Model, token_ids: Sequence[int], cache: DocumentCache) -> None:
    ids = torch.tensor([token_ids], device=device_of(model))
    with grouped_attention(model):
        # The body without the head: logits over a document's every token are not needed by anyone.
        model.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)


@torch.no_grad()
def feed_packed(model: Model, rows: Sequence[Sequence[int]], cache: DocumentCache) -> None:
    """Runs ``rows``, one behind the other in one pass, each seeing what ``cache`` holds and itself only.

    Prepacking (arXiv 2404.09529) under a shared prefix: positions restart behind the prefix for every row.
    """
    prefix = cache.get_seq_length()
    row = torch.cat([torch.full((len(ids),), n) for n, ids in enumerate(rows)])
    positions = torch.cat([torch.arange(prefix, prefix + len(ids)) for ids in rows])
    ids = torch.tensor([[token for tokens in rows for token in tokens]], device=device_of(model))
    with grouped_attention(model):
        model.model.base_model(
            input_ids=ids,
            position_ids=positions[None].to(ids.device),
            attention_mask=row_masks(
                model,
                torch.cat([torch.full((prefix,), SHARED), row]),
                torch.cat([torch.arange(prefix), positions]),
                row,
                positions,
            ),
            past_key_values=cache,
            use_cache=True,
        )
    _refuse_partial(model, cache, prefix + len(row))


def slice_kv(model: Model, cache: DocumentCache, start: int, token_ids: Sequence[int], position: int) -> KV:
    """The KV of ``token_ids``, held by ``cache`` from index ``start`` on, as views, first of them at ``position``."""
    end = start + len(token_ids)
    positions = torch.arange(position, position + len(token_ids))
    layers = tuple(
        LayerKV(x.keys[0, :, start:end], x.values[0, :, start:end], positions) for x in cache.layers
    )
    return KV(layers, torch.tensor(token_ids, dtype=torch.int64), model.rope)


def append_kv(cache: DocumentCache, kv: KV) -> None:
    """Copies ``kv`` behind what ``cache`` holds."""
    for layer, source in zip(cache.layers, kv.layers, strict=True):
        if not layer.is_initialized:
            layer.lazy_initialization(source.keys[None], source.values[None])
        keys, values = layer.extend(source.keys.shape[1])
        keys[0].copy_(source.keys)
        values[0].copy_(source.values)


def masks(model: Model, visible: Tensor, positions: Tensor, key_positions: Tensor) -> Any:
    """``visible`` [S, N], where tokens at ``positions`` may look among keys, narrowed by each layer's window.

    Boolean ``[1, 1, S, N]``, or a dict of them by layer kind where the model mixes kinds.
    """

    def mask(window: int | None) -> Tensor:
        seen = (
            visible if window is None else visible & (key_positions[None, :] > (positions - window)[:, None])
        )
        seen = seen[None, None].to(device_of(model))
        # The loaded model's own config: only loading chooses an implementation.
        if model.model.config.get_text_config(decoder=True)._attn_implementation != "eager":
            return seen
        # Eager attention adds its mask to the scores.
        zero = torch.zeros((), dtype=model.dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(model.dtype).min)

    kinds, _ = get_layer_types_and_kwargs(model.text_config)
    by_kind = dict(zip(kinds, windows(model), strict=True))
    found = {kind: mask(window) for kind, window in by_kind.items()}
    return found if len(found) > 1 else next(iter(found.values()))


def causal_masks(model: Model, positions: Tensor, n_keys: int) -> Any:
    """``masks`` of tokens at ``positions`` [S] that see all of ``n_keys`` keys, at 0, 1, …, up to their own."""
    keys = torch.arange(n_keys)
    return masks(model, keys[None, :] <= positions[:, None], positions, keys)


def row_masks(model: Model, owners: Tensor, key_positions: Tensor, row: Tensor, positions: Tensor) -> Any:
    """Masks under which each token of a pass sees what is ``SHARED``, and of its own row what stands before it.

    ``owners`` and ``key_positions`` [N] are of all keys, those of the pass included; ``row`` and ``positions`` [S] of
    the pass's tokens.
    """
    own = own_row(owners, key_positions, row, positions)
    return masks(model, own | (owners == SHARED)[None, :], positions, key_positions)


def own_row(owners: Tensor, key_positions: Tensor, row: Tensor, positions: Tensor) -> Tensor:
    """Which keys [S, N] are of each token's own row and stand no further on than it; as ``row_masks`` has them."""
    return (row[:, None] == owners[None, :]) & (key_positions[None, :] <= positions[:, None])


def _refuse_partial(model: Model, cache: DocumentCache, expected: int) -> None:
    """A family that caches otherwise than its config says is refused here, before anything is stored."""
    lengths = {layer.get_seq_length() for layer in cache.layers}
    if lengths != {expected}:
        raise ModelError(
            model.name,
            f"of {expected} tokens, {model.config.model_type} cached {sorted(lengths)} in its layers",
            "kvtool needs the keys and values of every token in every layer",
        )


@contextmanager
def grouped_attention(model: Model) -> Iterator[None]:
    """Lets attention under a mask read grouped keys and values as they are, on a CPU.

    transformers repeats them for each query head first, which for a question over a long cache costs as much as
    attending. Its switch is an environment variable; the results are equal to the bit.
    """
    before = os.environ.get(_GROUPED)
    if before is None and device_of(model).type == "cpu":
        os.environ[_GROUPED] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_GROUPED, None)


def device_of(model: Model) -> torch.device:
    """Where the model's inputs belong."""
    return torch.device(model.model.get_input_embeddings().weight.device)
