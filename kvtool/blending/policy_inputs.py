"""Inputs that policies choose tokens by. Each is measured when a policy first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.blending.layer_loader import LayerLoader
from kvtool.blending.layout import Layout
from kvtool.counts import counted
from kvtool.engines.attention.query import query_attention, query_norms, token_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import OnLayer, StopRecompute, recompute_tokens
from kvtool.engines.transformers import STEP_TOKENS
from kvtool.model.model import Model
from kvtool.system.trace import Trace

USUAL_QUESTION = "What are the documents above about?"
"""Is looked at in place of a question that is not known yet."""

RECENT = 128
"""The prompt's last tokens whose attention is looked at where no question is known: text that goes on attends as they do."""


Look: TypeAlias = Callable[[Model, DocumentCache, Tensor, OnLayer], Tensor]


class PolicyInputs:
    """``candidates`` [N] bool are the tokens that may be chosen, ``budget`` is how many of them will be.

    ``questions`` are the token ids [S] of each question; there are none where they are not known. ``usual_question`` [S] is
    looked at in their place.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        cache: DocumentCache,
        loader: LayerLoader,
        budget: int,
        questions: Sequence[Tensor],
        usual_question: Tensor,
        trace: Trace,
    ) -> None:
        self.model, self.layout, self.cache, self.loader = model, layout, cache, loader
        self.budget, self.trace = budget, trace
        self.questions, self.usual_question = questions, usual_question
        self.candidates = layout.cached & ~layout.exact

    @cached_property
    def attention(self) -> Tensor:
        """The mean weight that the questions' tokens give each cached token, [L, Q, N] by layer and head.

        One pass of each question over the cache as it is loaded.
        """
        return torch.stack([self._look(query_attention, ids) for ids in self.questions]).mean(0)

    @cached_property
    def attention_norm(self) -> Tensor:
        """The norm of those weights over a question's tokens, [L, N] by layer: ``query_norms``."""
        return torch.stack([self._look(query_norms, ids) for ids in self.questions]).mean(0)

    @cached_property
    def likely_attention(self) -> Tensor:
        """The same as ``attention`` for a question that is not known, as far as it can be guessed.

        The sum of what a usual question attends to and of what the prompt's last tokens do, which count alike.
        """
        recent = self.layout.cached.nonzero()[-RECENT:, 0]
        with self.trace.span("look", f"the last {len(recent)} tokens"):
            weights = [token_attention(self.model, self.cache, recent, self.loader.wait)]
        if len(self.usual_question):
            weights.append(self._look(query_attention, self.usual_question))
        # Where all windows are short, a question may see no candidate.
        totals = [each.mean((0, 1))[self.candidates].sum().clamp(min=1e-30) for each in weights]
        return torch.stack([each / total for each, total in zip(weights, totals, strict=True)]).sum(0)

    def _look(self, look: Look, question_ids: Tensor) -> Tensor:
        with self.trace.span("look", f"{counted(len(question_ids), 'token')} of the question"):
            return look(self.model, self.cache, question_ids, self.loader.wait)

    def score(self, name: str) -> Tensor | None:
        """One of ``artifact.scores.SCORES`` for all tokens, [N] or [L, N]; None where no segment has it.

        Segments without it get the mean of those that have it.
        """
        scores = [segment.artifact.score(name) for segment in self.layout.segments]
        known = [score for score in scores if score is not None]
        if not known:
            return None
        mean = torch.cat(known, -1).mean(-1, keepdim=True)
        result = mean.expand(*mean.shape[:-1], len(self.candidates)).clone()
        for segment, score in zip(self.layout.segments, scores, strict=True):
            if score is not None:
                result[..., segment.start : segment.stop] = score
        return result

    def refreshed(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances [S] of cached keys, and of values, of ``tokens`` [S] in ``layer`` from the recomputed ones.

        The model runs up to that layer for these tokens alone, step by step. What it computes stays in the cache.
        """
        steps = [self._refreshed(layer, step) for step in torch.split(tokens, STEP_TOKENS)]
        keys, values = zip(*steps, strict=True)
        return torch.cat(keys), torch.cat(values)

    def _refreshed(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        cached: list[tuple[Tensor, Tensor]] = []

        def before_layer(index: int) -> None:
            self.loader.wait(index)
            if index == layer:
                cached.append(self._at(index, tokens))

        def after_layer(index: int) -> None:
            if index == layer:
                raise StopRecompute

        with self.trace.span("compare", f"{counted(len(tokens), 'token')} at layer {layer}"):
            recompute_tokens(
                self.model,
                self.cache,
                self.layout.token_ids,
                tokens,
                n_keys=int(tokens[-1]) + 1,
                before_layer=before_layer,
                after_layer=after_layer,
            )
        ((keys, values),) = cached
        new_keys, new_values = self._at(layer, tokens)
        return _distance(new_keys, keys), _distance(new_values, values)

    def _at(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states = self.cache.layers[layer]
        places = tokens.to(states.keys.device)
        return states.keys[0, :, places].clone(), states.values[0, :, places].clone()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().sum((0, 2)).cpu()
