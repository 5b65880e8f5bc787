"""Tokens that stay because of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.spec import REPLAYED, Payload
from kvtool.codecs.stage_registry import register


@dataclass(frozen=True)
class Select(Prune):
    """Keeps the share ``keep`` of a segment's tokens, those with the largest scores.

    ``budget`` says how it is shared out: "uniform" gives each head of each layer the same; "global" compares all heads
    of all layers; "tokens" keeps the same tokens in all of them, by their largest score.
    """

    keep: float = 0.5
    budget: Literal["uniform", "global", "tokens"] = "uniform"
    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        self.require(0 < self.keep <= 1, "keep", self.keep, "above 0, at most 1")
        self.require(self.sinks >= 0, "sinks", self.sinks, "a number of tokens")
        self.require(self.recent >= 0, "recent", self.recent, "a number of tokens")

    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        tokens = scores[0].shape[-1]
        always = min(tokens, self.sinks + self.recent)
        least = max(round(self.keep * tokens), min(tokens, 1))
        self.require(
            always <= least, "keep", self.keep, f"at least {always / max(tokens, 1):.3g}, for sinks and recent"
        )
        raised = [self._raised(score) for score in scores]
        if self.budget == "tokens":
            whole = torch.stack([score.amax(0) for score in raised]).amax(0)
            return [_largest(whole, least)[None] for _ in scores]
        if self.budget == "uniform":
            return [torch.stack([_largest(row, least) for row in score]) for score in raised]
        flat = torch.cat([score.flatten() for score in raised])
        kept = _largest(flat, round(self.keep * len(flat))).split([score.numel() for score in scores])
        return [some.view(score.shape) for some, score in zip(kept, scores, strict=True)]

    def _raised(self, score: Tensor) -> Tensor:
        raised = score.clone()
        raised[:, : self.sinks] = torch.inf
        raised[:, max(0, score.shape[1] - self.recent) :] = torch.inf
        return raised


def _largest(scores: Tensor, number: int) -> Tensor:
    """Which of ``scores`` [N] are the largest ``number``; of equal ones the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:number]] = True
    return kept


@register
@dataclass(frozen=True)
class ByNorm(Select):
    """Keeps tokens whose keys have the smallest norms (arXiv 2406.11430)."""

    name: ClassVar[str] = "by-norm"
    version: ClassVar[int] = 1

    def score(self, layer: LayerKV, inputs: Payload) -> Tensor:
        return -layer.keys.float().norm(dim=-1)


@register
@dataclass(frozen=True)
class ByReplay(Select):
    """Keeps tokens that are looked up when the text is repeated: KVzip (arXiv 2505.23416)."""

    name: ClassVar[str] = "by-replay"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({REPLAYED})

    budget: Literal["uniform", "global", "tokens"] = "global"

    def score(self, layer: LayerKV, inputs: Payload) -> Tensor:
        return inputs[REPLAYED]
