"""Tokens that stay because of their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget, Scores, best
from kvtool.codecs.prune.budgets.heads import across, ada_kv, by_layer, uniform
from kvtool.codecs.prune.budgets.table import SHARES
from kvtool.codecs.prune.scores.cache import value_aware
from kvtool.codecs.prune.scores.table import SCORES
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register

Heads: TypeAlias = Callable[[Scores, Budget, "Sequence[float] | None"], list[Tensor]]


def _tokens(scores: Scores, budget: Budget, shares: Sequence[float] | None) -> list[Tensor]:
    if not scores:
        return []
    largest = torch.stack([score.amax(0) for score in scores]).amax(0)
    total = round(budget.total(scores) / max(sum(len(score) for score in scores), 1))
    kept = best(largest, budget.always(0, len(largest)), total)
    return [kept[None] for _ in scores]


HEADS: Mapping[str, Heads] = {
    "uniform": lambda scores, budget, shares: (
        uniform(scores, budget) if shares is None else by_layer(scores, budget, shares)
    ),
    "ada-kv": ada_kv,
    "across": lambda scores, budget, shares: across(scores, budget),
    "tokens": _tokens,
}
"""How what stays is shared out among heads: all alike; those of a layer by their scores; those of all layers by their scores;
the same tokens in all, by the largest score of any, which is what recipes need that code layers together."""


@register
@dataclass(frozen=True)
class Select(Prune):
    """Keeps the share ``keep`` of a segment's tokens: each head's ``sinks`` first, ``recent`` last, and those of the best scores.

    ``score`` is a name of ``scores.table``; with ``values`` it is multiplied by the values' norms (VATP). ``heads`` is one of
    ``HEADS``. ``layers`` names their shares of ``budgets.table``; empty for all alike. The layers ``whole`` keep all tokens,
    and the others the fewer; negative ones are counted from the last.
    """

    score: str
    heads: str = "uniform"
    layers: str = ""
    keep: float = 0.5
    sinks: int = 0
    recent: int = 0
    values: bool = False
    whole: tuple[int, ...] = ()

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.require(self.score in SCORES, "score", self.score, ", ".join(SCORES))
        self.require(self.heads in HEADS, "heads", self.heads, ", ".join(HEADS))
        self.require(self.layers in ("", *SHARES), "layers", self.layers, f"nothing, {', '.join(SHARES)}")
        shared = not self.layers or self.heads in ("uniform", "ada-kv")
        self.require(shared, "layers", self.layers, f"nothing with heads {self.heads!r}")
        same = not self.whole or self.heads != "tokens"
        self.require(same, "whole", self.whole, "no layers with heads 'tokens', which are the same in all")
        self.budget(0)

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        by_score = [cls(score, keep=0.4) for score in SCORES]
        by_heads = [cls("l2-norm", heads, "", keep, 1, 2, True) for heads in HEADS for keep in (0.3, 1.0)]
        by_layers = [
            cls("l2-norm", heads, layers, 0.3) for layers in SHARES for heads in ("uniform", "ada-kv")
        ]
        whole = [cls("l2-norm", heads, "", 0.7, whole=(0, -1)) for heads in HEADS if heads != "tokens"]
        return (*by_score, *by_heads, *by_layers, *whole)

    @property
    def needs(self) -> frozenset[str]:
        return SCORES[self.score].needs | (SHARES[self.layers].needs if self.layers else frozenset())

    @property
    def keeps_same_tokens(self) -> bool:
        return self.heads == "tokens"

    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        scores = SCORES[self.score].of(layer, inputs, rope)
        return value_aware(scores, layer) if self.values else scores

    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        budget = self.budget(len(scores))
        shares = SHARES[self.layers].of(scores, budget, layers, inputs) if self.layers else None
        return HEADS[self.heads](scores, budget, shares)

    def budget(self, n_layers: int) -> Budget:
        whole = {index % n_layers for index in self.whole if -n_layers <= index < n_layers}
        return Budget(self.keep, self.sinks, self.recent, frozenset(whole))
