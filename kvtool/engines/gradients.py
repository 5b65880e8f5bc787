"""Gradients of a model's loss by each stored key and value, which calibration weighs errors with.

The loss is that of prefilling a text, and that of repeating it over the cache as it is stored. The first alone
underestimates the few heads that look one thing up among many: running text hides errors of their keys that questions
show.

No model-specific code: a cache records what every layer hands it, or returns what is stored, and autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.cache_utils import Cache, DynamicLayer

from kvtool.codecs import KV, LayerKV, Sample
from kvtool.engines.attention.replay import REQUEST
from kvtool.engines.capabilities import rope_description
from kvtool.engines.transformers import causal_masks, device_of, run_masked, windows
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model

TOKENS = 1024
"""The most tokens of a segment: their activations in all layers are in memory together until the backward pass is done."""

REPEATING = 2.0
"""The weight of the loss of repeating. Errors that only repeating shows weigh its square."""


def gradients(
    model: Model, prefix_ids: Sequence[int], token_ids: Sequence[int], *, tokens: int = TOKENS
) -> Sample:
    """The cache of the segment's first ``tokens`` tokens after the prefix, and the gradients of the model's loss by it.

    The loss is the negative log likelihood of the tokens, in nats and summed, and ``REPEATING`` times that of the same
    tokens over their own stored cache, after a request to repeat (KVzip's, arXiv 2505.23416). The gradients are by each
    key, rotated as it is stored, and each value, with all that depends on it: in the first pass later layers' keys and
    values too. They are [H, T, D] and [H, T, Dv] of each layer, in float32 whatever the model computes in, on the CPU
    like the KV beside them. A segment that does not fit the model's context twice is cut as well; ``kv.token_ids`` are
    the tokens that were kept.

    Raises ``ModelError`` for a family whose keys and values have no gradients, or whose gradients are not finite.
    """
    start, request = len(prefix_ids), document_tokens(model, REQUEST)
    room = (model.context - start - len(request)) // 2
    ids = list(token_ids[: max(0, min(tokens, room))])
    cache = Cache(layers=[_RecordingLayer() for _ in windows(model)])
    with torch.enable_grad():
        loss = _prefill_loss(model, cache, prefix_ids, ids)
        recorded = [tensor for layer in cache.layers for tensor in layer.recorded]
        lengths = [tensor.shape[2] for tensor in recorded]
        if lengths != [start + len(ids)] * 2 * len(cache.layers):
            raise _untraceable(model)
        prefill = _differentiate(model, loss, recorded)
        stored = [tensor.detach().requires_grad_() for tensor in recorded]
        repeat = _differentiate(model, _repeat_loss(model, stored, request, ids), stored)
    total = [a.float() + REPEATING * b.float() for a, b in zip(prefill, repeat, strict=True)]
    if not all(gradient.isfinite().all() for gradient in total):
        raise ModelError(
            model.name,
            f"gradients of its keys and values are not finite in {model.dtype_name}",
            "calibrate with --dtype float32, or bfloat16, or compress with --recipe kivi, which needs "
            "neither gradients nor attention",
        )
    positions = torch.arange(start, start + len(ids))
    token_tensor = torch.tensor(ids, dtype=torch.int64)
    kv = KV(_layers(recorded, start, positions), token_tensor, rope_description(model))
    return Sample(kv, _layers(total, start, positions))


def _prefill_loss(model: Model, cache: Cache, prefix_ids: Sequence[int], ids: Sequence[int]) -> Tensor:
    all_ids = torch.tensor([[*prefix_ids, *ids]], device=device_of(model))
    # Parameters need no gradients, so that none are kept: the graph starts at the embeddings.
    embedded = model.model.get_input_embeddings()(all_ids).detach().requires_grad_()
    # Without a prefix nothing predicts the first token.
    predicted = len(ids) if prefix_ids else max(len(ids) - 1, 0)
    logits = model.model(
        inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=predicted + 1
    ).logits[0, :-1]
    targets = all_ids[0, all_ids.shape[1] - predicted :].to(logits.device)
    return cross_entropy(logits.float(), targets, reduction="sum")


def _repeat_loss(
    model: Model, stored: Sequence[Tensor], request: Sequence[int], ids: Sequence[int]
) -> Tensor:
    cache = Cache(layers=[_StoredLayer(*pair) for pair in zip(stored[::2], stored[1::2], strict=True)])
    all_ids = torch.tensor([*request, *ids])
    start = stored[0].shape[2]
    end = start + len(all_ids)
    positions = torch.arange(start, end)
    mask = causal_masks(model, positions, end)
    logits = run_masked(model, all_ids, positions, mask, cache, logits_to_keep=len(ids) + 1).logits[0, :-1]
    return cross_entropy(logits.float(), all_ids[len(request) :].to(logits.device), reduction="sum")


def _differentiate(model: Model, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not all(tensor.requires_grad for tensor in (loss, *tensors)):
        raise _untraceable(model)
    result = torch.autograd.grad(loss, tensors, allow_unused=True)
    if any(gradient is None for gradient in result):
        raise _untraceable(model)
    return list(result)


class _RecordingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that returns its keys and values unchanged, and records them."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        # Where two layers share one, there are twice as many.
        self.recorded += [key_states, value_states]
        return key_states, value_states


class _StoredLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that starts from stored keys and values, and appends to them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


def _layers(tensors: Sequence[Tensor], start: int, positions: Tensor) -> tuple[LayerKV, ...]:
    """Keys and values in turn, each [1, H, N, D], as layers of the segment on the CPU."""
    segment = [tensor.detach()[0, :, start:].cpu() for tensor in tensors]
    pairs = zip(segment[::2], segment[1::2], strict=True)
    return tuple(LayerKV(keys, values, positions) for keys, values in pairs)


def _untraceable(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"{model.config.model_type} does not hand its cache every layer's keys and values in a way that "
        "gradients follow, so that recipes which are calibrated with gradients cannot be used with it",
        "compress with --recipe kivi, which needs neither gradients nor attention",
    )
