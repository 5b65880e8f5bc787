"""Sequences after several caches in one pass: the weights are read once for all of them.

Each cache's tokens attend to that cache alone, as it must be read, one cache after the other. No
model-specific code. A family that makes its keys from what the cache holds (latent attention) cannot be run so: whether a
model can is found out by running it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, get_layer_types_and_kwargs

from kvtool.engines.attention.cache_attention import attention_to
from kvtool.engines.attention.override import Attention, override_attention
from kvtool.engines.batching.shared_prefix import Feed, SequenceBatch
from kvtool.engines.cache import DocumentCache
from kvtool.engines.ragged import reading_pruned
from kvtool.engines.transformers import causal_masks, device_of, new_cache, run_masked
from kvtool.errors import KvtoolError, ModelError
from kvtool.model.model import Model

TOLERANCE = 1e-4
"""The largest difference of logits, relative to the largest, that the order of summation explains."""


def feed_batches(
    model: Model, feeds: Sequence[tuple[SequenceBatch, Feed]], every: Collection[int] = ()
) -> list[Tensor]:
    """``SequenceBatch.feed`` of each, in one pass.

    Only for a model of which ``supports_multi_cache`` is true. No two batches may share a cache.
    """
    if len(feeds) == 1:
        ((batch, feed),) = feeds
        return [batch.feed(feed, every)]
    passes = [batch.plan(feed, every) for batch, feed in feeds]
    ends = torch.tensor([len(step.token_ids) for step in passes]).cumsum(0).tolist()
    parts = [
        _Part(batch.cache, slice(end - len(step.token_ids), end), attention_to(model, batch.cache))
        for (batch, _), step, end in zip(feeds, passes, ends, strict=True)
    ]
    kinds, _ = get_layer_types_and_kwargs(model.text_config)
    layers = [_MultiLayer(parts, index) for index in range(len(kinds))]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, **rest: Any
    ) -> Tensor:
        index = module.layer_idx
        outputs = []
        for part, each, (keys, values) in zip(parts, masks, layers[index].states, strict=True):
            seen = each[kinds[index]] if isinstance(each, dict) else each
            queries = query[:, :, part.tokens]
            outputs.append(part.attention(module, queries, keys, values, seen, scale, **rest))
        return torch.cat(outputs, 1)

    ids = torch.cat([step.token_ids for step in passes])
    positions = torch.cat([step.positions for step in passes])
    kept = torch.cat([step.kept + part.tokens.start for step, part in zip(passes, parts, strict=True)])
    refusal = ModelError(model.name, f"the attention of {model.config.model_type} cannot be replaced")
    with reading_pruned(), override_attention(model, attention, refusal):
        masks = [step.masks(model) for step in passes]
        mask = causal_masks(model, torch.arange(len(ids)), len(ids))
        cache = Cache(layers=layers)
        out = run_masked(model, ids, positions, mask, cache, logits_to_keep=kept.to(device_of(model)))
    for (batch, _), step in zip(feeds, passes, strict=True):
        batch.commit(step)
    return list(out.logits[0].split([len(step.kept) for step in passes]))


@dataclass(frozen=True)
class _Part:
    """The ``tokens`` of a pass that follow ``cache``, and the attention that reads it."""

    cache: DocumentCache
    tokens: slice
    attention: Attention


class _MultiLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that appends to each part's own cache; ``states`` are then the keys and values of each."""

    def __init__(self, parts: Sequence[_Part], index: int) -> None:
        super().__init__()
        self.parts, self.index = parts, index
        self.states: list[tuple[Tensor, Tensor]] = []
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.states = []
        for part in self.parts:
            keys, values = (states[:, :, part.tokens] for states in (key_states, value_states))
            self.states.append(part.cache.layers[self.index].update(keys, values))
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


@torch.no_grad()
def supports_multi_cache(model: Model) -> bool:
    """Whether ``feed_batches`` gives what ``SequenceBatch.feed`` gives, found by doing both with a few tokens."""
    prompts = [list(range(n, 2 * n)) for n in (3, 5)]

    def batches() -> list[SequenceBatch]:
        return [SequenceBatch(model, new_cache(model, 16)) for _ in prompts]

    separate, joint = batches(), batches()
    try:
        for _ in range(2):
            expected = [batch.feed([(0, ids)]) for batch, ids in zip(separate, prompts, strict=True)]
            feeds = [(batch, [(0, ids)]) for batch, ids in zip(joint, prompts, strict=True)]
            for logits, other in zip(expected, feed_batches(model, feeds), strict=True):
                if (logits - other).abs().max() > TOLERANCE * logits.abs().max():
                    return False
    except (KvtoolError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return True
