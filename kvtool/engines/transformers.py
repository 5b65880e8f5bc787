"""Runs a transformers model over token ids, into a ``DocumentCache``.

No model-specific code: what differs between families is read from the config (window sizes) or passed through the
public forward (``position_ids``, a 4-D ``attention_mask``, a cache).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from kvtool.engines.cache import DocumentCache
from kvtool.engines.once_per_model import once_per_model
from kvtool.errors import ModelError, first_line
from kvtool.model.model import Model

STEP_TOKENS = 1024
"""Tokens of one forward pass. More are hardly faster, and take more memory for activations."""

SHARED = -1
"""The owner of tokens that every sequence of a pass sees."""

Runner = Callable[[Callable[[], None]], object]
"""Runs one pass of the model and returns when it is done: at once, or in the model's own thread."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""The largest difference, relative to the largest element, that another order of summation explains."""

_KINDS = {"full_attention", "sliding_attention"}


def windows(model: Model) -> list[int | None]:
    """For each layer, how many positions back it sees, or None for all.

    Raises ``ModelError``, naming the family, for a model whose state is not one key and value for every token in
    every layer, whatever comes after it: recurrent and hybrid models, chunked attention, layers that share a cache,
    encoder-decoders, attention to later tokens. So for one that counts distances by places in the cache (ALiBi, the
    local attention of GPT-Neo).
    """
    config, family = model.text_config, model.config.model_type
    if model.config.is_encoder_decoder:
        raise ModelError(model.name, f"{family} is an encoder-decoder", "kvtool caches decoder-only models")
    # Families that see only some later tokens, such as those of one image, have a word here.
    if getattr(config, "use_bidirectional_attention", None) is True:
        reason = f"{family} with use_bidirectional_attention lets tokens see later ones"
        raise ModelError(model.name, reason, "kvtool caches models with causal attention")
    if getattr(config, "alibi", False) or "local" in (getattr(config, "attention_layers", None) or ()):
        raise _unplaced(model)
    try:
        kinds, options = get_layer_types_and_kwargs(config)
    except (AttributeError, ValueError) as error:
        reason = (
            f"the configuration of {family} does not say of what kind its layers are ({first_line(error)})"
        )
        raise ModelError(model.name, reason, "kvtool caches models of one stack of layers") from error
    if strange := sorted(set(kinds) - _KINDS):
        raise ModelError(
            model.name,
            f"{family} has layers of kind {', '.join(strange)}, whose state is not keys and values of every "
            "token",
            "kvtool caches models with full and sliding-window attention",
        )
    return [option.get("sliding_window") for option in options]


def new_cache(model: Model, capacity: int) -> DocumentCache:
    """An empty cache with room for ``capacity`` tokens.

    Raises as ``windows``, and for a model that takes no positions, has windows that its code does not know, cannot be run, or
    lets tokens see later ones.
    """
    layers = len(windows(model))
    _refuse_unfit(model)
    return DocumentCache(layers, capacity=capacity)


@once_per_model
def _refuse_unfit(model: Model) -> None:
    seen, body = windows(model), model.model.base_model
    if "position_ids" not in signature(type(body).forward).parameters:
        raise _unplaced(model)
    sources = {sys.modules[type(module).__module__] for module in body.modules()}
    # transformers would cut its own cache to a window that the model's masks do not have.
    if any(seen) and not any(hasattr(source, "create_sliding_window_causal_mask") for source in sources):
        reason = f"{model.config.model_type} is configured with a sliding window that its code does not apply"
        raise ModelError(model.name, reason, "kvtool caches models that mask what is outside of a window")
    _refuse_sight_of_later_tokens(model, len(seen))


def _refuse_sight_of_later_tokens(model: Model, n_layers: int) -> None:
    """Runs a few tokens with and without others after them: what layers after attention keep of them must be the same.

    Configurations have many words for it, and those of encoders are often silent.
    """
    family, n_tokens = model.config.model_type, 4
    caches = [DocumentCache(n_layers), DocumentCache(n_layers)]
    for number, cache in enumerate(caches, 1):
        try:
            feed(model, range(1, 1 + number * n_tokens), cache)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{family} cannot be run on token ids and a cache alone ({first_line(error)})"
            raise ModelError(model.name, reason, "kvtool caches language models of text") from error
    alone, followed = (cache.layers[min(1, n_layers - 1)].keys[:, :, :n_tokens] for cache in caches)
    # Weights of 8 bits round a pass's tokens by what the largest of them are.
    tolerance = max(TOLERANCE.values()) if model.load_in else TOLERANCE[alone.dtype]
    if (alone - followed).abs().max() > tolerance * alone.abs().max():
        reason = f"{family} lets tokens see later ones, as an encoder does"
        raise ModelError(model.name, reason, "kvtool caches models with causal attention")


def _unplaced(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"{model.config.model_type} takes a token's position from its place in the cache (ALiBi, local attention, or "
        "no position_ids)",
        "kvtool caches models that are told each token's position",
    )


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
    """Runs ``token_ids`` after ``cache``, ``step`` at a time, so that memory stays at one step's.

    ``on_step`` is called with each step's number of tokens, in the caller's thread wherever ``run`` runs them.
    """
    expected = cache.get_seq_length() + len(token_ids)
    for start in range(0, len(token_ids), step):
        ids = token_ids[start : start + step]
        run(partial(_forward, model, ids, cache))
        on_step(len(ids))
    _refuse_partial(model, cache, expected)


def run_masked(
    model: Model, ids: Tensor, positions: Tensor, mask: Any, cache: Cache, **options: int | Tensor
) -> Any:
    """One pass over ``ids`` [S] at ``positions`` [S] after ``cache``, under a mask of ``masks``.

    The body runs without the head, unless ``logits_to_keep`` says for which tokens logits are wanted.
    """
    device = device_of(model)
    run = model.model if options else model.model.base_model
    return run(
        input_ids=ids[None].to(device),
        position_ids=positions[None].to(device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **options,
    )


@torch.no_grad()
def _forward(model: Model, token_ids: Sequence[int], cache: DocumentCache) -> None:
    ids = torch.tensor([token_ids], device=device_of(model))
    # The body without the head: nobody needs logits over a document's every token.
    model.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)


@torch.no_grad()
def feed_packed(model: Model, rows: Sequence[Sequence[int]], cache: DocumentCache) -> None:
    """Runs ``rows``, one after the other in one pass, each seeing ``cache`` and itself only.

    Prepacking (arXiv 2404.09529) after a shared prefix: positions restart after the prefix for every row.
    """
    prefix = cache.get_seq_length()
    row = torch.cat([torch.full((len(ids),), n) for n, ids in enumerate(rows)])
    positions = torch.cat([torch.arange(prefix, prefix + len(ids)) for ids in rows])
    ids = torch.tensor([token for tokens in rows for token in tokens])
    owners = torch.cat([torch.full((prefix,), SHARED), row])
    key_positions = torch.cat([torch.arange(prefix), positions])
    run_masked(model, ids, positions, row_masks(model, owners, key_positions, row, positions), cache)
    _refuse_partial(model, cache, prefix + len(row))


def masks(model: Model, visible: Tensor, positions: Tensor, key_positions: Tensor) -> Any:
    """Attention masks: the keys ``visible`` [S, N] to tokens at ``positions`` [S], narrowed by each layer's window.

    Boolean ``[1, 1, S, N]``, or a dict of them by layer kind where the model mixes kinds. Keys stand at
    ``key_positions`` [N].
    """

    def mask(window: int | None) -> Tensor:
        seen = visible
        if window is not None:
            seen = seen & (key_positions[None, :] > (positions - window)[:, None])
        seen = seen[None, None].to(device_of(model))
        # The loaded model's config, not the one on disk: only loading chooses an implementation.
        if model.model.config.get_text_config(decoder=True)._attn_implementation != "eager":
            return seen
        # Eager attention adds its mask to the scores.
        zero = torch.zeros((), dtype=model.dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(model.dtype).min)

    kinds, _ = get_layer_types_and_kwargs(model.text_config)
    by_kind = dict(zip(kinds, windows(model), strict=True))
    masks_by_kind = {kind: mask(window) for kind, window in by_kind.items()}
    return masks_by_kind if len(masks_by_kind) > 1 else next(iter(masks_by_kind.values()))


def causal_masks(model: Model, positions: Tensor, n_keys: int) -> Any:
    """``masks`` of tokens at ``positions`` [S] that see the keys at 0, 1, … up to their own, of ``n_keys``."""
    keys = torch.arange(n_keys)
    return masks(model, keys[None, :] <= positions[:, None], positions, keys)


def row_masks(model: Model, owners: Tensor, key_positions: Tensor, row: Tensor, positions: Tensor) -> Any:
    """Masks under which each token of a pass sees the ``SHARED`` keys, and those of its own row up to its own place.

    ``owners`` and ``key_positions`` [N] are of all keys, those of the pass included. ``row`` and ``positions`` [S] are of
    the pass's tokens.
    """
    same = same_row(owners, key_positions, row, positions)
    return masks(model, same | (owners == SHARED)[None, :], positions, key_positions)


def same_row(owners: Tensor, key_positions: Tensor, row: Tensor, positions: Tensor) -> Tensor:
    """Which keys [S, N] are of each token's own row and stand no further on than the token; arguments as of ``row_masks``."""
    return (row[:, None] == owners[None, :]) & (key_positions[None, :] <= positions[:, None])


def _refuse_partial(model: Model, cache: DocumentCache, expected: int) -> None:
    """Refuses a family that caches otherwise than its config says, before anything is stored."""
    lengths = {layer.get_seq_length() for layer in cache.layers}
    if lengths != {expected}:
        raise ModelError(
            model.name,
            f"of {expected} tokens, {model.config.model_type} cached {sorted(lengths)} in its layers",
            "kvtool needs the keys and values of every token in every layer",
        )


def device_of(model: Model) -> torch.device:
    """The device of the model's inputs."""
    return torch.device(model.model.get_input_embeddings().weight.device)
