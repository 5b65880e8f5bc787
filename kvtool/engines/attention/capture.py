"""Watches what attention does while a model runs: every layer's queries, and where they look.

No model-specific code: ``engines.attending`` calls a function here in place of the family's own attention. Plain
attention, a softmax over scaled products, is computed in blocks that stay in the processor's cache, and without
repeating keys for every query head. Whether a family's attention is plain is tried out on the last queries of each pass;
one that has a soft cap or sinks is computed by its own eager function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kvtool.engines.attention.attending import attending, eager_attention
from kvtool.errors import ModelError
from kvtool.model.model import Model

SCORES = 1 << 20
"""Scores of one head in a pass: what bounds its memory, whatever the segment's length."""

BLOCK = {"cpu": 1 << 18}
"""Scores in a block, a megabyte: the size of a core's own cache. Elsewhere more, since starting a block costs more."""
_BLOCK = 1 << 24

TRIED = 4
"""Queries of a pass, the last, that tell whether a family's attention is plain."""

TRIED_KEYS = 256
"""The last keys that these see, which they are tried on."""

# Largest difference between weights that rounding explains.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}

OnWeights: TypeAlias = Callable[[int, Tensor], None]


class Notes(Protocol):
    """What is noted of one layer, pass by pass."""

    def see(self, query: Tensor, mask: Tensor) -> None:
        """A pass's queries [Q, P, D], and which of the N tokens in the cache each may look at: ``mask`` [P, N]."""

    def weigh(self, first: int, weights: Tensor) -> None:
        """Where some of them look, [G, B, N]: G query heads from ``first`` on, and B queries."""


def step_tokens(n_keys: int) -> int:
    """Tokens of one pass over that many keys."""
    return max(1, SCORES // max(1, n_keys))


@contextmanager
def watching(model: Model, notes: Sequence[Notes]) -> Iterator[None]:
    """Tells ``notes``, one for each layer, what its attention does; the model is as it was afterwards.

    The model must be called with the masks of ``engines.transformers``. Raises ModelError for a family whose attention
    cannot be watched.
    """
    with attending(model, partial(_watched, model, notes), unwatchable):
        yield


def unwatchable(model: Model) -> ModelError:
    return ModelError(
        model.name,
        (
            f"the attention of {model.config.model_type} cannot be watched, since it does not go "
            "through transformers' AttentionInterface, so that recipes and policies which measure "
            "what is attended to cannot be used with it"
        ),
        (
            "compress with --recipe kivi, which needs neither gradients nor attention, and blend "
            "with --policy legolink"
        ),
    )


def _watched(
    model: Model,
    notes: Sequence[Notes],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None,
    **options: Any,
) -> Tensor:
    """Attention [1, P, Q, Dv] under a boolean mask [1, 1, P, N], as ``attending`` wants it."""
    eager = eager_attention(module)
    if eager is None:
        raise unwatchable(model)
    note, mask = notes[module.layer_idx], attention_mask[0, 0]
    note.see(query[0], mask)

    def own(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        added = query.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(query.dtype).min)
        # Where it scales by itself it takes no scaling.
        scaled = options if scaling is None else {**options, "scaling": scaling}
        output, weights = eager(module, query, key, value, added[None, None], **scaled)
        return output, weights[0]

    if scaling is not None and len(mask) > TRIED and query.shape[1] % key.shape[1] == 0:
        # Eager attention repeats all keys that it is given for each query head, so a few are enough, of those that are seen.
        some = torch.arange(len(mask) - TRIED, len(mask), device=query.device)
        keys = mask[some[-1]].nonzero()[-TRIED_KEYS:, 0]
        some = some[mask[some][:, keys].any(-1)]
        tried = query[:, :, some], key[:, :, keys], value[:, :, keys], mask[some][:, keys]
        output, weights = own(*tried)
        found: list[Tensor] = []
        plain = _plain(*tried, scaling, lambda _, w: found.append(w))
        tolerance = TOLERANCE[query.dtype]
        if (torch.cat(found) - weights).abs().max() <= tolerance and (
            plain - output
        ).abs().max() <= tolerance * tried[2].abs().max():
            return _plain(query, key, value, mask, scaling, note.weigh)
    output, weights = own(query, key, value, mask)
    note.weigh(0, weights)
    return output


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, on_weights: OnWeights
) -> Tensor:
    """Attention [1, P, Q, Dv], block by block: a few queries of all heads that share a key head."""
    group = query.shape[1] // key.shape[1]
    output = query.new_empty(1, len(mask), query.shape[1], value.shape[3])
    added = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    step = max(1, BLOCK.get(query.device.type, _BLOCK) // (group * key.shape[2]))
    for start in range(0, len(mask), step):
        some = slice(start, start + step)
        hidden = added[some].repeat(group, 1)
        for head in range(key.shape[1]):
            first = head * group
            own = slice(first, first + group)
            scores = torch.addmm(hidden, query[0, own, some].flatten(0, 1), key[0, head].mT, alpha=scaling)
            weights = scores.softmax(-1, dtype=torch.float32)
            looked = weights.to(value.dtype) @ value[0, head]
            output[0, some, own] = looked.view(group, -1, looked.shape[1]).transpose(0, 1)
            on_weights(first, weights.view(group, -1, weights.shape[1]))
    return output
