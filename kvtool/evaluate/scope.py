"""What an evaluation measures, and on how much."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..model import Model
from ..prompt import Prefix

METRICS = ("kl", "retrieval", "answers", "times")

ROOM = 256
"""Tokens left behind a haystack for the longest conversation and its answer."""

LEAST_CACHED = 64
"""Tokens of a document that are cached at the least: a recipe's windows should not be all of it."""


@dataclass(frozen=True)
class Scope:
    """``metrics`` of ``METRICS``. ``documents`` are sampled if there are more.

    For KL at most ``context`` tokens of a document are cached, and ``tokens`` behind them predicted. Haystacks have
    ``lengths`` tokens, ``haystacks`` of each kind and length. ``answer_tokens`` of an answer are compared. Times are
    medians of ``repeats``. ``seed`` draws documents, needles and depths.
    """

    metrics: tuple[str, ...] = METRICS
    documents: int = 12
    context: int = 2048
    tokens: int = 256
    lengths: tuple[int, ...] = (512, 1024, 2048)
    haystacks: int = 2
    answer_tokens: int = 48
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise UsageError(f"--metrics {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
        if not self.metrics:
            raise UsageError(f"--metrics: is empty, expected some of {', '.join(METRICS)}")
        counts = ("documents", "context", "tokens", "haystacks", "answer_tokens", "repeats")
        for name, value in [
            *((n, getattr(self, n)) for n in counts),
            *(("lengths", n) for n in self.lengths),
        ]:
            if value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least 1")

    def refuse_too_long(self, model: Model, prefix: Prefix) -> None:
        """Raises ``UsageError`` for haystacks that the model's context does not hold."""
        most = model.context - len(prefix.token_ids) - ROOM
        if "retrieval" in self.metrics and self.lengths and max(self.lengths) > most:
            raise UsageError(
                f"--lengths {max(self.lengths)}: {model.name} has a context of {model.context}, which leaves {most} tokens "
                f"behind a prefix of {len(prefix.token_ids)} and before the questions"
            )
