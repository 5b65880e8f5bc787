"""What computing some of a document's tokens anew tells of the others.

Behind other text, the keys and values of a document's tokens change to a good part alike. How much those that are
recomputed changed on average is therefore passed on, in part, to those that are not: layer by layer, before the layer is
read, so that what is recomputed behind them sees it too.

Only in caches made for blending (``averaged``), whose tokens are wrong by what these neighbours are and others were
not. What a document prefilled alone is wrong by differs more from sentence to sentence: there the mean did harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.blending.layout import Layout
from kvtool.codecs.rope import Rope, turn
from kvtool.engines.cache import DocumentCache
from kvtool.engines.rope import Turned

HALF = 0.3
"""The share of a document's tokens that, recomputed, say so much of the others that half of their change is passed on.

The fewer they are, the more they are those that are unlike the others: what the question looks at.
"""


class Drift:
    """Called with each layer's changes of the recomputed ``tokens`` [S]; changes the others in ``cache``."""

    def __init__(self, layout: Layout, turned: Turned, cache: DocumentCache, tokens: Tensor) -> None:
        self.cache, self.turned, self.tokens = cache, turned, tokens
        segments = torch.full((len(layout.token_ids),), -1)
        for n, segment in enumerate(layout.segments):
            if not segment.artifact.is_exact:
                segments[segment.start : segment.stop] = n
        chosen = segments[tokens]
        self.source = (chosen >= 0).nonzero()[:, 0]
        self.of_source = chosen[self.source]
        self.counts = torch.bincount(self.of_source, minlength=len(layout.segments)).float()
        recomputed = self.counts / torch.tensor([segment.stop - segment.start for segment in layout.segments])
        self.shares = recomputed / (recomputed + HALF)
        others = (segments >= 0) & (self.shares[segments] > 0)
        others[tokens] = False
        self.target = others.nonzero()[:, 0]
        self.of_target = segments[self.target]

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
        mean *= (self.shares / self.counts.clamp(min=1)).to(device)[:, None]
        passed = turn(mean[:, self.of_target.to(device)], rope, self.target)
        whole.index_add_(1, target, passed.to(whole.dtype))
