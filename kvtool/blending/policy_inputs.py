"""What is known of a blend before its tokens are chosen: each thing is measured when a policy first asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kvtool.blending.layer_loader import Loading
from kvtool.blending.layout import Layout
from kvtool.engines.attention.query import regard
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import Enough, run_again
from kvtool.engines.transformers import STEP_TOKENS
from kvtool.model.model import Model
from kvtool.system.trace import Trace


class Known:
    """``candidates`` [N] bool are the tokens that may be chosen, ``budget`` is how many of them will be.

    ``questions`` are the token ids of each that is going to be asked; there are none where that is not known.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        cache: DocumentCache,
        loading: Loading,
        budget: int,
        questions: Sequence[Tensor],
        trace: Trace,
    ) -> None:
        self.model, self.layout, self.cache, self.loading = model, layout, cache, loading
        self.budget, self.questions, self.trace = budget, questions, trace
        self.candidates = layout.cached & ~layout.exact

    @cached_property
    def attention(self) -> Tensor:
        """Mean weight that the questions' tokens give each token over the cached keys, [L, Q, N] by layer and head.

        One pass of each question over what is cached, as it is cached.
        """
        looks = []
        for question_ids in self.questions:
            with self.trace.span("look", f"{len(question_ids)} tokens of the question"):
                looks.append(regard(self.model, self.cache, question_ids, self.loading.wait))
        return torch.stack(looks).mean(0)

    def scored(self, name: str) -> Tensor | None:
        """One of ``artifact.SCORES`` for all tokens, [N] or [L, N]; None where no segment says so.

        Segments that do not say so get the mean of those that do.
        """
        scores = [segment.artifact.score(name) for segment in self.layout.segments]
        told = [score for score in scores if score is not None]
        if not told:
            return None
        usual = torch.cat(told, -1).mean(-1, keepdim=True)
        found = usual.expand(*usual.shape[:-1], len(self.candidates)).clone()
        for segment, score in zip(self.layout.segments, scores, strict=True):
            if score is not None:
                found[..., segment.start : segment.stop] = score
        return found

    def refreshed(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How far keys and values of ``tokens`` [S] in ``layer`` are from what the model computes, squared, [S] each.

        The model runs up to there for these tokens alone, a step after the other. What it computes stays in the cache.
        """
        steps = [self._refreshed(layer, some) for some in torch.split(tokens, STEP_TOKENS)]
        keys, values = zip(*steps, strict=True)
        return torch.cat(keys), torch.cat(values)

    def _refreshed(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        before: list[tuple[Tensor, Tensor]] = []

        def keep(index: int) -> None:
            self.loading.wait(index)
            if index == layer:
                before.append(self._at(index, tokens))

        def stop(index: int) -> None:
            if index == layer:
                raise Enough

        with self.trace.span("compare", f"{len(tokens)} tokens at layer {layer}"):
            run_again(
                self.model,
                self.cache,
                self.layout.token_ids,
                tokens,
                n_keys=int(tokens[-1]) + 1,
                before=keep,
                after=stop,
            )
        ((keys, values),) = before
        now_keys, now_values = self._at(layer, tokens)
        return _distance(now_keys, keys), _distance(now_values, values)

    def _at(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        held = self.cache.layers[layer]
        places = tokens.to(held.keys.device)
        return held.keys[0, :, places].clone(), held.values[0, :, places].clone()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().sum((0, 2)).cpu()
