"""Tokens that are merged into those that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget
from kvtool.codecs.prune.merge.d2o import d2o
from kvtool.codecs.prune.merge.elastic import elastic
from kvtool.codecs.prune.merge.kvmerger import kvmerger
from kvtool.codecs.prune.scores.inputs import RECEIVED, read
from kvtool.codecs.prune.select import Select
from kvtool.codecs.prune.stage import Prune, take
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class MergeSimilar(Select):
    """Keeps tokens as ``Select`` does, and merges the others into those with the most similar keys (D2O)."""

    name: ClassVar[str] = "merge-similar"
    version: ClassVar[int] = 1

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        return (cls("h2o", "uniform", "d2o", 0.4), cls("l2-norm", "across", "", 0.6, 1, 2))

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        return take(d2o(layer, kept.expand(layer.n_heads, -1)), kept)


@register
@dataclass(frozen=True)
class MergeNearest(Select):
    """Keeps tokens as ``Select`` does, each as the mean of itself and the others that are nearest to it (Elastic Cache)."""

    name: ClassVar[str] = "merge-nearest"
    version: ClassVar[int] = 1

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        return (cls("elastic-cache", keep=0.4, sinks=4), cls("l2-norm", "ada-kv", "", 0.3, 0, 2))

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        return take(elastic(layer, kept.expand(layer.n_heads, -1), self.sinks), kept)


@register
@dataclass(frozen=True)
class MergeRuns(Prune):
    """Keeps the share ``keep`` of each head's tokens, by merging neighbours with similar keys (KVMerger).

    The ``sinks`` first and the ``recent`` last tokens stay as they are.
    """

    keep: float = 0.5
    sinks: int = 0
    recent: int = 0

    name: ClassVar[str] = "merge-runs"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.budget(0)

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        return (cls(0.4), cls(0.5, 2, 3))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({RECEIVED})

    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        """One for tokens that stand for their run, and zero for others, which depends on keys."""
        return self._merged(layer, inputs)[1].float()

    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        self.budget(len(scores)).total(scores)
        return [score > 0 for score in scores]

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        return take(self._merged(layer, inputs)[0], kept)

    def _merged(self, layer: LayerKV, inputs: Payload) -> tuple[LayerKV, Tensor]:
        heads, tokens = layer.keys.shape[:2]
        always = self.budget(1).always(0, tokens)
        counts = torch.full((heads,), max(round(self.keep * tokens), int(always.sum())))
        return kvmerger(layer, read(inputs, RECEIVED, layer), always, counts)

    def budget(self, n_layers: int) -> Budget:
        return Budget(self.keep, self.sinks, self.recent)
