"""Tokens that stay for others that heads treat alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import best
from kvtool.codecs.prune.scores.kvcrush import kvcrush
from kvtool.codecs.prune.select import Select
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class SelectGroups(Select):
    """Keeps as many tokens as ``Select`` does: its best, and for ``share`` of them one token of each group that heads treat
    alike (KVCrush)."""

    share: float = 0.25

    name: ClassVar[str] = "select-groups"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.share <= 1, "share", self.share, "a number from 0 to 1")
        self.require(self.heads != "tokens", "heads", self.heads, "heads that may hold different tokens")

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        heads = ("uniform", "ada-kv", "across")
        return tuple(
            cls("h2o", heads, keep=0.4, sinks=1, recent=2, share=share)
            for heads in heads
            for share in (0.0, 0.5)
        )

    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        budget, masks = self.budget(len(scores)), super().choose(scores, layers, inputs)
        chosen = []
        for index, (layer, mask) in enumerate(zip(scores, masks, strict=True)):
            always, counts = budget.always(index, layer.shape[1]), mask.sum(1)
            # Representatives are the same in all heads, so that they are as many as the head with the fewest tokens allows.
            kept = int(counts.min()) - int(always.sum())
            ranked = kvcrush(layer, always, kept, self.share)
            chosen.append(best(ranked, torch.zeros_like(always), counts))
        return chosen
