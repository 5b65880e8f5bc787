"""Corrects tokens that are not recomputed by the mean change of those that are.

After other text, the keys and values of a document's tokens change to a good part alike. The mean change of the recomputed
tokens is therefore added, in part, to the others: layer by layer, before the layer is read, so that tokens recomputed after
them see it too.

This is done only in caches made for blending (``averaged``), whose tokens differ from a full prefill by what these
neighbours have and the sampled ones had not. The errors of a document prefilled alone differ more from sentence to
sentence: there the mean did harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.blending.layout import Layout
from kvtool.codecs.rope import Rope, turn
from kvtool.engines.cache import DocumentCache
from kvtool.engines.rope import Rotations

HALF = 0.3
"""The share of recomputed tokens in a document at which half of their mean change is added to the others.

The fewer they are, the less they are like the others: they are those that the question attends to.
"""


class Drift:
    """Is called with each layer's changes of the recomputed ``tokens`` [S], and corrects the others in ``cache``."""

    def __init__(self, layout: Layout, rotations: Rotations, cache: DocumentCache, tokens: Tensor) -> None:
        self.cache, self.rotations, self.tokens = cache, rotations, tokens
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
        cached = self.cache.layers[layer]
        self._correct(keys, cached.keys[0], self.rotations.keys[layer])
        self._correct(values, cached.values[0], self.rotations.values[layer])

    def _correct(self, change: Tensor, states: Tensor, rope: Rope) -> None:
        """Adds to ``states`` [H, N, D], for each segment, its share of the mean ``change`` [H, S, D]."""
        device = change.device
        source, target = self.source.to(device), self.target.to(device)
        unrotated = turn(change[:, source].float(), rope, self.tokens[self.source], undo=True)
        heads, _, size = change.shape
        mean = unrotated.new_zeros(heads, len(self.counts), size)
        mean.index_add_(1, self.of_source.to(device), unrotated)
        mean *= (self.shares / self.counts.clamp(min=1)).to(device)[:, None]
        correction = turn(mean[:, self.of_target.to(device)], rope, self.target)
        states.index_add_(1, target, correction.to(states.dtype))
