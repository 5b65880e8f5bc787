"""Corrects tokens that are not recomputed by the changes of those that are.

After other text, the keys and values of a document's tokens change to a good part alike, and most of all those of tokens that
are near each other. So the change of a token that is not recomputed is estimated from those of the recomputed tokens of
its segment, and half of the estimate is added to it: layer by layer, before the layer is read, so that tokens recomputed
after it see it too.

The estimate is that of Gaussian process regression (kriging). Two changes have a covariance that falls exponentially with
their distance. What tokens do not share counts as noise, so that few recomputed tokens correct little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.blending.layout import Layout
from kvtool.codecs.rope import Rope, turn
from kvtool.engines.cache import DocumentCache
from kvtool.engines.rope import Rotations

SHARED_BY_KEYS, SHARED_BY_VALUES = 0.2, 0.1
"""The part of a change's variance that neighbouring tokens share. Measured: 0.3 to 0.5 for keys, 0.1 to 0.3 for values, and
less among tokens that a question attends to."""

REACH = 256.0
"""Tokens over which the covariance falls to 1 / e. Measured: it halves over a few hundred tokens."""

PART = 0.5
"""The part of the estimate that is added. The whole of it is better in prose, and does harm where a sentence does not belong
to the text around it."""

STRIDE = 16
"""Estimates vary slowly along the text, so one is worked out for this many tokens."""


@dataclass(frozen=True)
class _Segment:
    """``sources`` are indices into the recomputed tokens, ``targets`` [T] the places of the others.

    ``by_keys`` and ``by_values`` [B, S] are weights of the sources in the estimate of each block, and ``blocks`` [T] is the
    block of each target.
    """

    sources: Tensor
    targets: Tensor
    blocks: Tensor
    by_keys: Tensor
    by_values: Tensor


class Drift:
    """Is called with each layer's changes of the recomputed ``tokens`` [S], and corrects the others in ``cache``."""

    def __init__(self, layout: Layout, rotations: Rotations, cache: DocumentCache, tokens: Tensor) -> None:
        self.cache, self.rotations, self.tokens = cache, rotations, tokens
        correctable = layout.cached & ~layout.exact
        correctable[tokens] = False
        self.segments = []
        for segment in layout.segments:
            places = torch.arange(segment.start, segment.stop)
            sources = ((tokens >= segment.start) & (tokens < segment.stop)).nonzero()[:, 0]
            targets = places[correctable[places]]
            if len(sources) and len(targets):
                self.segments.append(_weigh(sources, tokens[sources], targets, segment.start))

    def __call__(self, layer: int, keys: Tensor, values: Tensor) -> None:
        cached, rotations = self.cache.layers[layer], self.rotations
        for segment in self.segments:
            self._correct(segment, segment.by_keys, keys, cached.keys[0], rotations.keys[layer])
            self._correct(segment, segment.by_values, values, cached.values[0], rotations.values[layer])

    def _correct(
        self, segment: _Segment, weights: Tensor, change: Tensor, states: Tensor, rope: Rope
    ) -> None:
        """Adds to ``states`` [H, N, D] what ``weights`` make of ``change`` [H, S, D], both without their rotation."""
        device = change.device
        sources, targets = segment.sources, segment.targets
        unrotated = turn(change[:, sources.to(device)].float(), rope, self.tokens[sources], undo=True)
        estimate = torch.einsum("bs,hsd->hbd", weights.to(device), unrotated)
        correction = turn(estimate[:, segment.blocks.to(device)], rope, targets)
        states.index_add_(1, targets.to(device), correction.to(states.dtype))


def _weigh(sources: Tensor, places: Tensor, targets: Tensor, start: int) -> _Segment:
    """The segment from ``start`` on, whose tokens at ``places`` [S] are recomputed."""
    blocks = (targets - start) // STRIDE
    middles = start + torch.arange(int(blocks[-1]) + 1) * STRIDE + (STRIDE - 1) / 2
    near, far = _correlation(places, places), _correlation(middles, places)

    def weights(shared: float) -> Tensor:
        noise = (1 - shared) * torch.eye(len(places))
        estimated: Tensor = torch.linalg.solve(shared * near + noise, shared * far, left=False)
        return PART * estimated

    return _Segment(sources, targets, blocks, weights(SHARED_BY_KEYS), weights(SHARED_BY_VALUES))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-(a[:, None] - b[None]).abs().float() / REACH)
