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
    ids = list(token_ids[: min(tokens, model.context - start)])
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
        if any(layer.noted != start + len(ids) for layer in cache.layers) or not loss.requires_grad:
            raise _untraceable(model)
        loss.backward()
    positions = torch.arange(start, start + len(ids))
    kv = KV(
        tuple(LayerKV(_own(x.keys, start), _own(x.values, start), positions) for x in cache.layers),
        torch.tensor(ids, dtype=torch.int64),
        model.rope,
    )
    return Sample(kv, tuple(_gradient(model, layer, start, positions) for layer in cache.layers))


class _NotedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that hands its keys and values on as they are, and keeps their gradients."""

    noted = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        if key_states.requires_grad and value_states.requires_grad:
            key_states.retain_grad()
            value_states.retain_grad()
            # A layer that is written twice holds what two layers share.
            self.noted += key_states.shape[2]
        return key_states, value_states


def _gradient(model: Model, layer: _NotedLayer, start: int, positions: Tensor) -> LayerKV:
    found = []
    for tensor in (layer.keys, layer.values):
        if tensor.grad is None:
            raise _untraceable(model)
        gradient = _own(tensor.grad, start).float()
        if not gradient.isfinite().all():
            raise ModelError(
                f"{model.name}: gradients of its keys and values are not finite in {model.dtype_name}; calibrate with "
                "--dtype float32, or bfloat16"
            )
        found.append(gradient)
    return LayerKV(*found, positions)


def _own(tensor: Tensor, start: int) -> Tensor:
    """The segment's part [H, T, D] of [1, H, N, D]."""
    return tensor.detach()[0, :, start:].cpu()


def _untraceable(model: Model) -> ModelError:
    return ModelError(
        f"{model.name}: {model.config.model_type} does not hand its cache every layer's keys and values in a way that "
        "gradients follow; recipes that are calibrated with gradients cannot be used with it"
    )
