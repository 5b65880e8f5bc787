"""Rows behind several caches in one pass: the weights are read once for all of them.

Each cache's tokens attend to that cache alone, by the family's own attention, called for one cache after the other. No
model-specific code. A family that makes its keys from what the cache holds (latent attention) cannot be read so: whether
a model can is tried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, get_layer_types_and_kwargs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtool.engines import transformers as engine
from kvtool.engines.attention.attending import attending, eager_attention
from kvtool.engines.batching.shared_prefix import Fed, Rows
from kvtool.engines.cache import DocumentCache
from kvtool.errors import KvtoolError, ModelError
from kvtool.model.model import Model

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest, that the order of summation explains."""


def feed_together(model: Model, feeds: Sequence[tuple[Rows, Fed]]) -> list[Tensor]:
    """``Rows.feed`` of each, in one pass. Only for a model that ``can_be_fed_together``; no cache twice."""
    if len(feeds) == 1:
        ((rows, fed),) = feeds
        return [rows.feed(fed)]
    passes = [rows.next_pass(fed) for rows, fed in feeds]
    ends = torch.tensor([len(one.token_ids) for one in passes]).cumsum(0).tolist()
    parts = [
        _Part(rows.cache, slice(end - len(one.token_ids), end), one.masks(model))
        for (rows, _), one, end in zip(feeds, passes, ends, strict=True)
    ]
    kinds, _ = get_layer_types_and_kwargs(model.text_config)
    implementation = model.model.config.get_text_config(decoder=True)._attn_implementation
    layers = [_Layer(parts, index) for index in range(len(kinds))]

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: Tensor,
        scaling: float | None,
        **options: Any,
    ) -> Tensor:
        own = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention(module))
        index = module.layer_idx
        found = []
        for part, (keys, values) in zip(parts, layers[index].held, strict=True):
            mask = part.masks[kinds[index]] if isinstance(part.masks, dict) else part.masks
            found.append(
                own(module, query[:, :, part.tokens], keys, values, mask, scaling=scaling, **options)[0]
            )
        return torch.cat(found, 1)

    device = engine.device_of(model)
    positions = torch.cat([one.positions for one in passes])
    last = torch.cat([one.last + part.tokens.start for one, part in zip(passes, parts, strict=True)])
    with attending(model, attend, _not_together), engine.grouped_attention(model):
        out = model.model(
            input_ids=torch.cat([one.token_ids for one in passes])[None].to(device),
            position_ids=positions[None].to(device),
            attention_mask=engine.causal_masks(model, torch.arange(len(positions)), len(positions)),
            past_key_values=Cache(layers=layers),
            use_cache=True,
            logits_to_keep=last.to(device),
        )
    for (rows, _), one in zip(feeds, passes, strict=True):
        rows.has_fed(one)
    return list(out.logits[0].split([len(one.last) for one in passes]))


@dataclass(frozen=True)
class _Part:
    cache: DocumentCache
    tokens: slice
    masks: Any


class _Layer(DynamicLayer):  # type: ignore[misc]
    """What is computed goes to each part's own cache; ``held`` is then all that each of them has."""

    def __init__(self, parts: Sequence[_Part], index: int) -> None:
        super().__init__()
        self.parts, self.index = parts, index
        self.held: list[tuple[Tensor, Tensor]] = []
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.held = [
            part.cache.layers[self.index].update(
                key_states[:, :, part.tokens], value_states[:, :, part.tokens]
            )
            for part in self.parts
        ]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


@torch.no_grad()
def can_be_fed_together(model: Model) -> bool:
    """Whether ``feed_together`` gives what ``Rows.feed`` gives, found by doing both with a few tokens."""
    some = [list(range(n, 2 * n)) for n in (3, 5)]

    def rows() -> list[Rows]:
        return [Rows(model, engine.new_cache(model, 16)) for _ in some]

    apart, together = rows(), rows()
    try:
        for _ in range(2):
            expected = [one.feed([(0, ids)]) for one, ids in zip(apart, some, strict=True)]
            found = feed_together(model, [(one, [(0, ids)]) for one, ids in zip(together, some, strict=True)])
            for right, other in zip(expected, found, strict=True):
                if (right - other).abs().max() > TOLERANCE * right.abs().max():
                    return False
    except (KvtoolError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return True


def _not_together(model: Model) -> ModelError:
    return ModelError(model.name, f"the attention of {model.config.model_type} cannot be replaced")
