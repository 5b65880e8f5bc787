"""What is known of a blend before its tokens are chosen: each thing is measured when a policy first asks for it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..engines.cache import DocumentCache
from ..engines.held import Enough, run_again
from ..engines.regard import regard
from ..model import Model
from ..trace import Trace
from .layout import Layout
from .loading import Loading


class Known:
    """``candidates`` [N] bool are the tokens that may be chosen, ``budget`` is how many of them will be.

    ``question_ids`` [Q] int64 is what is going to be asked; empty where that is not known.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        cache: DocumentCache,
        loading: Loading,
        budget: int,
        question_ids: Tensor,
        trace: Trace,
    ) -> None:
        self.model, self.layout, self.cache, self.loading = model, layout, cache, loading
        self.budget, self.question_ids, self.trace = budget, question_ids, trace
        self.candidates = layout.cached & ~layout.exact

    @cached_property
    def attention(self) -> Tensor:
        """Mean weight that the question's tokens give each token over the cached keys, [L, Q, N] by layer and head.

        One pass of the question over what is cached, as it is cached.
        """
        with self.trace.span("look", f"{len(self.question_ids)} tokens of the question"):
            return regard(self.model, self.cache, self.question_ids, self.loading.wait)

    def scored(self, name: str) -> Tensor | None:
        """One of ``artifact.SCORES`` for all tokens, [N] or [L, N]; None where no segment says so.

        Segments that do not say so get the mean of those that do.
        """
        scores = [segment.artifact.score(name) for segment in self.layout.segments]
        told = [score for score in scores if score is not None]
        if not told:
            return None
        usual = torch.cat([score.flatten() for score in told]).mean()
        found = usual.expand(*told[0].shape[:-1], len(self.candidates)).clone()
        for segment, score in zip(self.layout.segments, scores, strict=True):
            if score is not None:
                found[..., segment.start : segment.stop] = score
        return found

    def refreshed(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How far keys and values of ``tokens`` [S] in ``layer`` are from what the model computes, squared, [S] each.

        The model runs up to there for these tokens alone. What it computes stays in the cache.
        """
        before: list[tuple[Tensor, Tensor]] = []

        def keep(index: int) -> None:
            self.loading.wait(index)
            if index == layer:
                before.append(self._at(index, tokens))

        def stop(index: int) -> None:
            if index == layer:
                raise Enough

        with self.trace.span("compare", f"{len(tokens)} tokens at layer {layer}"):
            run_again(self.model, self.cache, self.layout.token_ids, tokens, before=keep, after=stop)
        ((keys, values),) = before
        now_keys, now_values = self._at(layer, tokens)
        return _distance(now_keys, keys), _distance(now_values, values)

    def _at(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        held = self.cache.layers[layer]
        places = tokens.to(held.keys.device)
        return held.keys[0, :, places].clone(), held.values[0, :, places].clone()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().sum((0, 2)).cpu()
