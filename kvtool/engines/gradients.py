"""How much a model's loss depends on each stored key and value: what calibration weighs errors with.

No model-specific code: a cache notes what every layer hands it, and autograd does the rest. Parameters need no
gradients, so that none are kept; the graph hangs on the input embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.cache_utils import Cache, DynamicLayer

from ..codecs import KV, LayerKV, Sample
from ..errors import ModelError
from ..model import Model
from . import transformers as engine

TOKENS = 1024
"""Of a segment at a time: its activations in all layers are in memory together, until they have been gone back through."""


def gradients(
    model: Model, prefix_ids: Sequence[int], token_ids: Sequence[int], *, tokens: int = TOKENS
) -> Sample:
    """One forward and one backward pass over the prefix and the segment's first ``tokens`` tokens.

    The loss is the negative log likelihood of the segment's tokens, summed, in nats. The gradients are those of
    moving one cached key, rotated as it is stored, or one value, with all that later layers make of it; [H, T, D]
    and [H, T, Dv] of each layer, in float32 whatever the model computes in, on the CPU like the KV beside them.
    A segment that does not fit the model's context behind the prefix is cut as well; ``kv.token_ids`` says what
    was left.

    Raises ModelError for a family whose keys and values have no gradients, or whose gradients are not finite.
    """
    start = len(prefix_ids)
    ids = list(token_ids[: max(0, min(tokens, model.context - start))])
    everything = torch.tensor([[*prefix_ids, *ids]], device=engine.device_of(model))
    cache = Cache(layers=[_NotedLayer() for _ in engine.windows(model)])
    with torch.enable_grad():
        embedded = model.model.get_input_embeddings()(everything).detach().requires_grad_()
        # Without a prefix nothing foretells the first token.
        predicted = ids if start else ids[1:]
        logits = model.model(
            inputs_embeds=embedded,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=len(predicted) + 1,
        ).logits[0, :-1]
        targets = torch.tensor(predicted, dtype=torch.int64, device=logits.device)
        loss = cross_entropy(logits.float(), targets, reduction="sum")
        noted = [tensor for layer in cache.layers for tensor in layer.noted]
        lengths = [tensor.shape[2] for tensor in noted]
        if lengths != [start + len(ids)] * 2 * len(cache.layers) or not all(
            tensor.requires_grad for tensor in (loss, *noted)
        ):
            raise _untraceable(model)
        slopes = torch.autograd.grad(loss, noted, allow_unused=True)
    if any(slope is None for slope in slopes):
        raise _untraceable(model)
    if not all(slope.isfinite().all() for slope in slopes):
        raise ModelError(
            f"{model.name}: gradients of its keys and values are not finite in {model.dtype_name}; calibrate with "
            "--dtype float32, or bfloat16"
        )
    positions = torch.arange(start, start + len(ids))
    kv = KV(_layers(noted, start, positions), torch.tensor(ids, dtype=torch.int64), model.rope)
    return Sample(kv, _layers([slope.float() for slope in slopes], start, positions))


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


def _layers(tensors: Sequence[Tensor], start: int, positions: Tensor) -> tuple[LayerKV, ...]:
    """Keys and values in turn, each [1, H, N, D], as layers of the segment's part on the CPU."""
    own = [tensor.detach()[0, :, start:].cpu() for tensor in tensors]
    return tuple(LayerKV(keys, values, positions) for keys, values in zip(own[::2], own[1::2], strict=True))


def _untraceable(model: Model) -> ModelError:
    return ModelError(
        f"{model.name}: {model.config.model_type} does not hand its cache every layer's keys and values in a way that "
        "gradients follow; recipes that are calibrated with gradients cannot be used with it"
    )
