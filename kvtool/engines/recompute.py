"""A cache that holds every token already, while some of them are run through the model again.

The model is called with these tokens' ids, their positions and a mask; what it would append is put where it belongs,
and it is given the keys and values of all. No model-specific code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from kvtool.engines import transformers as engine
from kvtool.engines.cache import BufferedLayer, DocumentCache
from kvtool.model.model import Model


class Enough(Exception):
    """Raised within the model when it has come as far as it was to."""


OnLayer: TypeAlias = Callable[[int], None]

OnChange: TypeAlias = Callable[[int, Tensor, Tensor], None]


def _nothing(layer: int) -> None:
    pass


@torch.no_grad()
def run_again(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    tokens: Tensor,
    *,
    write: bool = True,
    n_keys: int | None = None,
    before: OnLayer = _nothing,
    after: OnLayer = _nothing,
    changed: OnChange | None = None,
) -> None:
    """Runs ``tokens`` [S], ascending indices into ``token_ids`` [N], over ``cache``, which holds all N.

    Each sees the tokens up to its own place: as they are held, or as they are computed where they are among ``tokens``.
    What is computed is written over what is held, unless ``write`` is False. ``n_keys`` are those that any of them sees, by
    default all N: attention costs as much for a key that a mask hides as for another. ``before`` and ``after`` are called
    with a layer's index as the model comes to its attention, and once its keys and values are in place; either may
    raise ``Enough``, which ends the run there. ``changed`` is given, between these, the index and by how much keys
    [H, S, D] and values [H, S, Dv] of ``tokens`` are others than before.
    """
    device = engine.device_of(model)
    places = tokens if write else tokens[:0]
    seen = len(token_ids) if n_keys is None else n_keys
    held = [
        _Held(layer, index, places, seen, before, after, changed) for index, layer in enumerate(cache.layers)
    ]
    try:
        with engine.grouped_attention(model):
            model.model.base_model(
                input_ids=token_ids[tokens][None].to(device),
                position_ids=tokens[None].to(device),
                attention_mask=engine.causal_masks(model, tokens, seen),
                past_key_values=Cache(layers=held),
                use_cache=True,
            )
    except Enough:
        pass


class _Held(DynamicLayer):  # type: ignore[misc]
    """``layer``, as a run over it sees it; it is looked at when it is used, not before."""

    def __init__(
        self,
        layer: BufferedLayer,
        index: int,
        places: Tensor,
        seen: int,
        before: OnLayer,
        after: OnLayer,
        changed: OnChange | None,
    ) -> None:
        super().__init__()
        self.layer, self.index, self.places, self.seen = layer, index, places, seen
        self.before, self.after, self.changed = before, after, changed
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.before(self.index)
        self.layer.move(key_states.device)
        keys, values = self.layer.keys, self.layer.values
        assert keys is not None
        assert values is not None
        if len(self.places):
            places = self.places.to(keys.device)
            if self.changed:
                change = key_states - keys[:, :, places], value_states - values[:, :, places]
            keys[:, :, places] = key_states
            values[:, :, places] = value_states
            if self.changed:
                self.changed(self.index, change[0][0], change[1][0])
        self.after(self.index)
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def get_seq_length(self) -> int:
        return 0
