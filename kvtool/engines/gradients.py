"""How much a model's loss depends on each stored key and value: what calibration weighs errors with.

The loss is that of reading, and that of repeating what was read over the cache as it is stored. The first alone makes
little of the few heads that look one thing up among many: their keys may err by what running text hides and questions
show.

No model-specific code: a cache notes what every layer hands it, or hands out what is stored, and autograd does the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.cache_utils import Cache, DynamicLayer

from kvtool.codecs import KV, LayerKV, Sample
from kvtool.engines import transformers as engine
from kvtool.engines.attention.replay import REQUEST
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model

TOKENS = 1024
"""Of a segment at a time: its activations in all layers are in memory together, until they have been gone back through."""

REPEATING = 2.0
"""Weight of the loss of repeating; its square is that of errors which are seen there alone."""


def gradients(
    model: Model, prefix_ids: Sequence[int], token_ids: Sequence[int], *, tokens: int = TOKENS
) -> Sample:
    """The cache of the segment's first ``tokens`` tokens behind the prefix, and what the model's loss does with it.

    The loss is the negative log likelihood of the tokens, in nats and summed, and ``REPEATING`` times that of reading them
    again over their own stored cache, behind a request to repeat (KVzip's, arXiv 2505.23416). The gradients are those
    of moving one key, rotated as it is stored, or one value, with all that is made of it: in the first reading by later
    layers' keys and values too; [H, T, D] and [H, T, Dv] of each layer, in float32 whatever the model computes in, on
    the CPU like the KV beside them. A segment that does not fit the model's context twice is cut as well;
    ``kv.token_ids`` says what was left.

    Raises ModelError for a family whose keys and values have no gradients, or whose gradients are not finite.
    """
    start, request = len(prefix_ids), document_tokens(model, REQUEST)
    room = (model.context - start - len(request)) // 2
    ids = list(token_ids[: max(0, min(tokens, room))])
    cache = Cache(layers=[_NotedLayer() for _ in engine.windows(model)])
    with torch.enable_grad():
        loss = _reading(model, cache, prefix_ids, ids)
        noted = [tensor for layer in cache.layers for tensor in layer.noted]
        lengths = [tensor.shape[2] for tensor in noted]
        if lengths != [start + len(ids)] * 2 * len(cache.layers):
            raise _untraceable(model)
        read = _slopes(model, loss, noted)
        stored = [tensor.detach().requires_grad_() for tensor in noted]
        repeated = _slopes(model, _repeating(model, stored, request, ids), stored)
    slopes = [one.float() + REPEATING * other.float() for one, other in zip(read, repeated, strict=True)]
    if not all(slope.isfinite().all() for slope in slopes):
        raise ModelError(
            model.name,
            f"gradients of its keys and values are not finite in {model.dtype_name}",
            (
                "calibrate with --dtype float32, or bfloat16, or compress with --recipe kivi, which "
                "needs neither gradients nor attention"
            ),
        )
    positions = torch.arange(start, start + len(ids))
    kv = KV(_layers(noted, start, positions), torch.tensor(ids, dtype=torch.int64), model.rope)
    return Sample(kv, _layers(slopes, start, positions))


def _reading(model: Model, cache: Cache, prefix_ids: Sequence[int], ids: Sequence[int]) -> Tensor:
    everything = torch.tensor([[*prefix_ids, *ids]], device=engine.device_of(model))
    # Parameters need no gradients, so that none are kept: the graph hangs on the embeddings.
    embedded = model.model.get_input_embeddings()(everything).detach().requires_grad_()
    # Without a prefix nothing foretells the first token.
    predicted = len(ids) if prefix_ids else max(len(ids) - 1, 0)
    logits = model.model(
        inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=predicted + 1
    ).logits[0, :-1]
    targets = everything[0, everything.shape[1] - predicted :].to(logits.device)
    return cross_entropy(logits.float(), targets, reduction="sum")


def _repeating(model: Model, stored: Sequence[Tensor], request: Sequence[int], ids: Sequence[int]) -> Tensor:
    cache = Cache(layers=[_StoredLayer(*pair) for pair in zip(stored[::2], stored[1::2], strict=True)])
    fed = torch.tensor([[*request, *ids]], device=engine.device_of(model))
    n_stored = stored[0].shape[2]
    positions = torch.arange(n_stored, n_stored + fed.shape[1])
    logits = model.model(
        input_ids=fed,
        position_ids=positions[None].to(fed.device),
        attention_mask=engine.causal_masks(model, positions, n_stored + len(positions)),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=len(ids) + 1,
    ).logits[0, :-1]
    return cross_entropy(logits.float(), fed[0, len(request) :].to(logits.device), reduction="sum")


def _slopes(model: Model, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not all(tensor.requires_grad for tensor in (loss, *tensors)):
        raise _untraceable(model)
    slopes = torch.autograd.grad(loss, tensors, allow_unused=True)
    if any(slope is None for slope in slopes):
        raise _untraceable(model)
    return list(slopes)


class _NotedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that hands its keys and values on as they are, and notes them."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        # Twice as many where two layers share one.
        self.noted += [key_states, value_states]
        return key_states, value_states


class _StoredLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that holds what was stored, and takes what comes after behind it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


def _layers(tensors: Sequence[Tensor], start: int, positions: Tensor) -> tuple[LayerKV, ...]:
    """Keys and values in turn, each [1, H, N, D], as layers of the segment's part on the CPU."""
    own = [tensor.detach()[0, :, start:].cpu() for tensor in tensors]
    return tuple(LayerKV(keys, values, positions) for keys, values in zip(own[::2], own[1::2], strict=True))


def _untraceable(model: Model) -> ModelError:
    return ModelError(
        model.name,
        (
            f"{model.config.model_type} does not hand its cache every layer's keys and values in a "
            "way that gradients follow, so that recipes which are calibrated with gradients cannot "
            "be used with it"
        ),
        "compress with --recipe kivi, which needs neither gradients nor attention",
    )
