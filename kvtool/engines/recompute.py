"""Some tokens of a full cache, run through the model again.

The model is called with these tokens' ids, their positions and a mask. What it would append is written at the tokens'
own places, and it is given the keys and values of all tokens. No model-specific code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from kvtool.engines.cache import BufferedLayer, DocumentCache, refuse_pruned
from kvtool.engines.transformers import causal_masks, run_masked
from kvtool.model.model import Model


class StopRecompute(Exception):
    """Raised by a callback, within the model, to end a run."""


OnLayer: TypeAlias = Callable[[int], None]
OnChange: TypeAlias = Callable[[int, Tensor, Tensor], None]
OnLogits: TypeAlias = Callable[[Tensor], None]


@torch.no_grad()
def recompute_tokens(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    tokens: Tensor,
    *,
    write: bool = True,
    n_keys: int | None = None,
    before_layer: OnLayer = lambda _: None,
    after_layer: OnLayer = lambda _: None,
    on_change: OnChange | None = None,
    on_logits: OnLogits | None = None,
) -> None:
    """Runs ``tokens`` [S], ascending indices into ``token_ids`` [N], over ``cache``, which holds all N.

    Each token sees those up to its own place: their cached keys and values, or the new ones where they are among
    ``tokens``. The new ones replace the cached ones unless ``write`` is False. ``n_keys`` is how many keys any of the tokens
    sees, by default all N: attention costs as much for a key that a mask hides as for another.

    ``before_layer`` and ``after_layer`` are called with a layer's index, before its attention and once its keys and values
    are in place. Either may raise ``StopRecompute``, which ends the run there. Between the two, ``on_change`` is given the
    index, and by how much keys [H, S, D] and values [H, S, Dv] of ``tokens`` have changed. ``on_logits`` is
    given those of ``tokens``, [S, V].
    """
    places = tokens if write else tokens[:0]
    seen = len(token_ids) if n_keys is None else n_keys
    refuse_pruned(cache, "recomputing tokens")
    layers = [
        _RecomputedLayer(layer, index, places, seen, before_layer, after_layer, on_change)
        for index, layer in enumerate(cache.layers)
    ]
    with suppress(StopRecompute):
        # Without logits to keep, the head does not run.
        kept: dict[str, int | Tensor] = {"logits_to_keep": len(tokens)} if on_logits else {}
        mask = causal_masks(model, tokens, seen)
        output = run_masked(model, token_ids[tokens], tokens, mask, Cache(layers=layers), **kept)
        if on_logits:
            on_logits(output.logits[0])


class _RecomputedLayer(DynamicLayer):  # type: ignore[misc]
    """``layer`` as a run over it sees it. It is read when it is used, not before."""

    def __init__(
        self,
        layer: BufferedLayer,
        index: int,
        places: Tensor,
        seen: int,
        before_layer: OnLayer,
        after_layer: OnLayer,
        on_change: OnChange | None,
    ) -> None:
        super().__init__()
        self.layer, self.index, self.places, self.seen = layer, index, places, seen
        self.before_layer, self.after_layer, self.on_change = before_layer, after_layer, on_change
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.before_layer(self.index)
        self.layer.move(key_states.device)
        keys, values = self.layer.keys, self.layer.values
        assert keys is not None
        assert values is not None
        if len(self.places):
            places = self.places.to(keys.device)
            if self.on_change:
                change = key_states - keys[:, :, places], value_states - values[:, :, places]
            keys[:, :, places] = key_states
            values[:, :, places] = value_states
            if self.on_change:
                self.on_change(self.index, change[0][0], change[1][0])
        self.after_layer(self.index)
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def get_seq_length(self) -> int:
        return 0
