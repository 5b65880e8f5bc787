"""Tokens that stay because of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget, best
from kvtool.codecs.prune.budgets.heads import across, ada_kv, uniform
from kvtool.codecs.prune.budgets.layers import pyramid
from kvtool.codecs.prune.scores.table import SCORES
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register


def tokens(scores: Sequence[Tensor], budget: Budget) -> list[Tensor]:
    """The same tokens in all layers and heads, by the largest score of any.

    The only budget for what codes layers together.
    """
    if not scores:
        return []
    largest = torch.stack([score.amax(0) for score in scores]).amax(0)
    total = round(budget.total(scores) / max(sum(len(score) for score in scores), 1))
    kept = best(largest, budget.always(0, len(largest)), total)
    return [kept[None] for _ in scores]


BUDGETS = {
    "uniform": uniform,
    "ada-kv": ada_kv,
    "pyramid": lambda scores, budget: ada_kv(scores, budget, pyramid(scores, budget), floor=1.0),
    "ada-pyramid": lambda scores, budget: ada_kv(scores, budget, pyramid(scores, budget)),
    "across": across,
    "tokens": tokens,
}
"""How tokens that stay are shared out among layers and heads."""


@register
@dataclass(frozen=True)
class Select(Prune):
    """Keeps the share ``keep`` of a segment's tokens: each head's ``sinks`` first, ``recent`` last, and those of the best scores.

    ``score`` is a name of ``scores.table``, ``budget`` one of ``BUDGETS``.
    """

    score: str
    budget: str = "uniform"
    keep: float = 0.5
    sinks: int = 0
    recent: int = 0

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.require(self.score in SCORES, "score", self.score, ", ".join(SCORES))
        self.require(self.budget in BUDGETS, "budget", self.budget, ", ".join(BUDGETS))
        self._budget()

    @classmethod
    def examples(cls) -> tuple[Select, ...]:
        by_score = [cls(score, keep=0.4) for score in SCORES]
        by_budget = [cls("l2-norm", budget, keep, 1, 2) for budget, keep in product(BUDGETS, (0.3, 1.0))]
        return (*by_score, *by_budget)

    @property
    def needs(self) -> frozenset[str]:
        return SCORES[self.score].needs

    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        return SCORES[self.score].of(layer, inputs, rope)

    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        return BUDGETS[self.budget](scores, self._budget())

    def _budget(self) -> Budget:
        return Budget(self.keep, self.sinks, self.recent)
