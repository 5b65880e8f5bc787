"""What computing some of a document's tokens anew tells of the others.

Behind other text, the keys and values of a document's tokens change to a good part alike. How much those that are
recomputed changed on average is therefore passed on, in part, to those that are not: layer by layer, before the layer is
read, so that what is recomputed behind them sees it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..codecs.rope import Rope, turn
from ..engines.cache import DocumentCache
from ..engines.rope import Turned
from .layout import Layout

SHARE = 0.5
"""Of the mean change. Measured: all of it makes up for too much where few tokens are recomputed."""

FEWEST = 4
"""Recomputed tokens of a segment from which on their mean says something of the others."""


class Drift:
    """Called with each layer's changes of the recomputed ``tokens`` [S]; changes the others in ``cache``."""

    def __init__(self, layout: Layout, turned: Turned, cache: DocumentCache, tokens: Tensor) -> None:
        self.cache, self.turned, self.tokens = cache, turned, tokens
        segments = torch.full((len(layout.token_ids),), -1)
        for n, segment in enumerate(layout.segments):
            segments[segment.start : segment.stop] = n
        segments[layout.exact] = -1
        chosen = segments[tokens]
        self.counts = torch.bincount(chosen[chosen >= 0], minlength=len(layout.segments)).float()
        known = segments >= 0
        known[known.clone()] = self.counts[segments[known]] >= FEWEST
        self.source = known[tokens].nonzero()[:, 0]
        known[tokens] = False
        self.target = known.nonzero()[:, 0]
        self.of_source, self.of_target = chosen[self.source], segments[self.target]

    def __call__(self, layer: int, keys: Tensor, values: Tensor) -> None:
        if not len(self.target):
            return
        held = self.cache.layers[layer]
        for change, whole, rope in (
            (keys, held.keys, self.turned.keys[layer]),
            (values, held.values, self.turned.values[layer]),
        ):
            self._pass_on(change, whole[0], rope)

    def _pass_on(self, change: Tensor, whole: Tensor, rope: Rope) -> None:
        device = change.device
        source, target = self.source.to(device), self.target.to(device)
        from_place = turn(change[:, source].float(), rope, self.tokens[self.source], undo=True)
        heads, _, size = change.shape
        mean = from_place.new_zeros(heads, len(self.counts), size)
        mean.index_add_(1, self.of_source.to(device), from_place)
        mean *= SHARE / self.counts.clamp(min=1).to(device)[:, None]
        passed = turn(mean[:, self.of_target.to(device)], rope, self.target)
        whole.index_add_(1, target, passed.to(whole.dtype))
