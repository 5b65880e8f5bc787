"""The scope of an evaluation: which metrics, on how much text."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.errors import UsageError
from kvtool.measurement.haystack import MOST_REPEATS
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model

METRICS = ("kl", "retrieval", "answers", "times")

LENGTHS = (512, 1024, 2048)
"""Tokens of haystacks, as far as the model and the documents allow them."""

ROOM = 256
"""Tokens of the context kept free after a haystack, for the longest conversation and its answer."""

LEAST_CACHED = 64
"""Tokens of a document that are cached, at least. A recipe's windows should not be all of it."""

MOST_TOKENS = 4096
"""Tokens that are predicted, at most. The logits of all of them are in memory at once."""


@dataclass(frozen=True)
class Scope:
    """The ``metrics`` that are measured, some of ``METRICS``, and on how much text.

    ``documents`` are sampled if there are more. For KL at most ``context`` tokens of a document are cached, and the
    ``tokens`` after them predicted. Haystacks have ``lengths`` tokens (None: those of ``LENGTHS`` that fit); there are
    ``haystacks`` of each kind and length. ``answer_tokens`` of an answer are compared. Times are medians of ``repeats``.
    ``seed`` draws documents, needles and depths.
    """

    metrics: tuple[str, ...] = METRICS
    documents: int = 12
    context: int = 2048
    tokens: int = 256
    lengths: tuple[int, ...] | None = None
    haystacks: int = 2
    answer_tokens: int = 48
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise UsageError(f"--metrics {', '.join(unknown)}", f"expected some of {', '.join(METRICS)}")
        if not self.metrics:
            raise UsageError("--metrics", f"is empty, expected some of {', '.join(METRICS)}")
        if self.lengths == ():
            raise UsageError("--lengths", "is empty, expected numbers as in 512,1024", "or leave it out")
        counted = ("documents", "context", "tokens", "haystacks", "answer_tokens", "repeats")
        counts = [(name, getattr(self, name)) for name in counted]
        for name, value in [*counts, *(("lengths", length) for length in self.lengths or ())]:
            if value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}", "expected at least 1")
        if self.context < LEAST_CACHED:
            raise UsageError(f"--context {self.context}", f"expected at least {LEAST_CACHED}")
        if self.tokens > MOST_TOKENS:
            raise UsageError(f"--tokens {self.tokens}", f"expected at most {MOST_TOKENS}")

    @property
    def fed(self) -> int:
        """Tokens of each document that are predicted."""
        return self.tokens if "kl" in self.metrics else 0

    def fitted(self, model: Model, prefix: Prefix, available: int) -> Scope:
        """The scope with the lengths of haystacks that ``model`` and ``available`` tokens of documents allow.

        Raises ``UsageError`` for a length that was asked for and does not fit the model's context.
        """
        if "retrieval" not in self.metrics:
            return self
        most = model.context - len(prefix.token_ids) - ROOM
        if self.lengths is None and most >= LENGTHS[0]:
            lengths = tuple(n for n in LENGTHS if n <= most and n <= available * MOST_REPEATS)
            return replace(self, lengths=lengths or LENGTHS[:1])
        lengths = self.lengths or LENGTHS[:1]
        if max(lengths) > most:
            raise UsageError(
                f"--lengths {max(lengths)}",
                f"{model.name} has a context of {model.context}, which leaves {most} tokens after a prefix "
                f"of {len(prefix.token_ids)} and before the questions",
            )
        return replace(self, lengths=tuple(dict.fromkeys(lengths)))
