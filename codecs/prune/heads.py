"""Heads that keep all tokens, because they look far back, and others that keep few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget
from kvtool.codecs.prune.budgets.heads import by_class
from kvtool.codecs.prune.merge.compensation import compensated
from kvtool.codecs.prune.scores.table import HEADS
from kvtool.codecs.prune.stage import Prune, take
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class SelectHeads(Prune):
    """Keeps all tokens of the heads with the best scores, as many as the share ``keep`` of all tokens allows, and of the
    others the ``sinks`` first and the ``recent`` last.

    ``score`` is a name of ``scores.table.HEADS``.
    """

    score: str = "duoattention"
    keep: float = 0.5
    sinks: int = 64
    recent: int = 256

    name: ClassVar[str] = "select-heads"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.require(self.score in HEADS, "score", self.score, ", ".join(HEADS))
        self.budget(0)

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        return tuple(cls(score, 0.6, *few) for score in HEADS for few in ((2, 5), (0, 0)))

    @property
    def needs(self) -> frozenset[str]:
        return HEADS[self.score].needs

    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        of_layer = HEADS[self.score].of_layer
        heads = torch.zeros(layer.n_heads) if of_layer is None else of_layer(layer, inputs, rope).float()
        return heads[:, None].expand(layer.keys.shape[:2])

    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        joined = HEADS[self.score].joined
        # A layer without tokens has nothing to choose.
        heads = joined(layers, inputs) if joined else [score[:, :1].sum(1) for score in scores]
        return by_class(scores, heads, self.budget(len(scores)))

    def budget(self, n_layers: int) -> Budget:
        return Budget(self.keep, self.sinks, self.recent)


@register
@dataclass(frozen=True)
class CompensateHeads(SelectHeads):
    """Keeps heads as ``SelectHeads`` does; each of the others has a token for all that it drops (RazorAttention)."""

    score: str = "razorattention"
    sinks: int = 4

    biased: ClassVar[bool] = True
    name: ClassVar[str] = "compensate-heads"
    version: ClassVar[int] = 1

    def budget(self, n_layers: int) -> Budget:
        # The first token after the sinks is dropped with others, and stands for them.
        return Budget(self.keep, self.sinks + 1, self.recent)

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        others = kept.expand(layer.n_heads, -1).clone()
        others[~others.all(1), self.sinks] = False
        return take(compensated(layer, others)[0], kept)
