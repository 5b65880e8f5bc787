"""How much a model's loss depends on each stored key and value: what calibration weighs errors with.

What is stored is not computed again where it is used: an error in one layer changes nothing that a later layer has
stored. So the gradients are those of what comes after, which looks at the cache as it is. It reads on, and it repeats
what was read: the first alone makes little of the few heads that look one thing up among many, whose keys may err
by what running text hides and questions show.

No model-specific code: a cache hands every layer its stored keys and values, and autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.cache_utils import Cache, DynamicLayer

from ..codecs import KV, LayerKV, Sample
from ..errors import ModelError
from ..model import Model
from ..prompt import document_tokens
from . import transformers as engine
from .replay import REQUEST

TOKENS = 1024
"""Of a segment at a time: the activations of what comes after are in memory together, until they have been gone back
through."""

REPEATING = 2.0
"""Weight of the loss of repeating; its square is that of errors which are seen there alone."""


def gradients(
    model: Model, prefix_ids: Sequence[int], token_ids: Sequence[int], *, tokens: int = TOKENS
) -> Sample:
    """The cache of the segment's first ``tokens`` tokens, and gradients with respect to that of the first half of them.

    Over the stored first half, the model reads the other half, then a request to repeat (KVzip's, arXiv 2505.23416), then
    the first half again. The loss is the negative log likelihood of both, in nats and summed, that of repeating
    ``REPEATING`` times. The gradients are those of moving one stored key, rotated as it is, or one value; [H, T / 2, D]
    and [H, T / 2, Dv] of each layer, in float32 whatever the model computes in, on the CPU like the KV beside them.
    A segment that does not fit the model's context once and a half is cut as well; ``kv.token_ids`` says what was
    left.

    Raises ModelError for a family whose keys and values have no gradients, or whose gradients are not finite.
    """
    start, request = len(prefix_ids), document_tokens(model, REQUEST)
    room = (model.context - start - len(request)) * 2 // 3
    ids = list(token_ids[: max(0, min(tokens, room))])
    half = start + (len(ids) + 1) // 2
    stored = _stored(model, [*prefix_ids, *ids])
    kv = KV(_layers(stored, start, start + len(ids)), torch.tensor(ids, dtype=torch.int64), model.rope)
    leaves = [tensor[:, :, :half].clone().requires_grad_() for tensor in stored]
    if not ids:
        return Sample(kv, _layers([torch.zeros_like(leaf).float() for leaf in leaves], start, half))
    on, again = ids[half - start :], ids[: half - start]
    with torch.enable_grad():
        loss = _loss(model, leaves, on, request, again)
        if not loss.requires_grad:
            raise _untraceable(model)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    if any(slope is None for slope in slopes):
        raise _untraceable(model)
    if not all(slope.isfinite().all() for slope in slopes):
        raise ModelError(
            f"{model.name}: gradients of its keys and values are not finite in {model.dtype_name}; calibrate with "
            "--dtype float32, or bfloat16"
        )
    return Sample(kv, _layers([slope.float() for slope in slopes], start, half))


@torch.no_grad()
def _stored(model: Model, token_ids: Sequence[int]) -> list[Tensor]:
    """Every layer's keys and values [1, H, N, D] in turn."""
    cache = Cache(layers=[DynamicLayer() for _ in engine.windows(model)])
    ids = torch.tensor([list(token_ids)], device=engine.device_of(model))
    model.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    if {layer.get_seq_length() for layer in cache.layers} != {len(token_ids)}:
        raise _untraceable(model)
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _loss(
    model: Model, leaves: Sequence[Tensor], on: Sequence[int], request: Sequence[int], again: Sequence[int]
) -> Tensor:
    """Of reading ``on`` over what is stored, and, behind the request, ``again``."""
    cache = Cache(layers=[_StoredLayer(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)])
    before, fed = leaves[0].shape[2], [*on, *request, *again]
    ids = torch.tensor([fed], device=engine.device_of(model))
    keys = torch.arange(before + len(fed))
    positions = keys[before:]
    # Nothing here foretells the first token that is read on.
    read = torch.arange(1, max(len(on), 1))
    repeated = torch.arange(len(fed) - len(again), len(fed))
    predicted = torch.cat([read, repeated]).to(ids.device)
    logits = model.model(
        input_ids=ids,
        position_ids=positions[None].to(ids.device),
        attention_mask=engine.masks(model, keys[None, :] <= positions[:, None], positions, keys),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=predicted - 1,
    ).logits[0]
    surprise = cross_entropy(logits.float(), ids[0, predicted], reduction="none")
    return surprise[: len(read)].sum() + REPEATING * surprise[len(read) :].sum()


class _StoredLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that holds what was stored, and takes what comes after behind it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


def _layers(tensors: Sequence[Tensor], start: int, end: int) -> tuple[LayerKV, ...]:
    """Keys and values in turn, each [1, H, N, D], as layers of the tokens from ``start`` to ``end``, on the CPU."""
    own = [tensor.detach()[0, :, start:end].cpu() for tensor in tensors]
    positions = torch.arange(start, end)
    return tuple(LayerKV(keys, values, positions) for keys, values in zip(own[::2], own[1::2], strict=True))


def _untraceable(model: Model) -> ModelError:
    return ModelError(
        f"{model.name}: {model.config.model_type} does not hand its cache every layer's keys and values in a way that "
        "gradients follow; recipes that are calibrated with gradients cannot be used with it"
    )
