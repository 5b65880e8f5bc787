"""The report of a run of ``prefill``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtool.errors import DocumentError, KvtoolError


@dataclass
class Report:
    """Results of a run so far. ``problems`` say which documents could not be prefilled, and why.

    ``warnings`` say which were prefilled though their text may lack something, or be wrong. ``passed_over`` counts what was
    left out of folders, by reason (empty, hidden, ignored, excluded, store, special) or suffix.

    ``entries`` are the states of the documents' entries, as this run left them (``Document.state``).

    ``tokens`` are those that the model ran: whole passes, though some of their documents were in the store already.
    ``model_seconds`` is the part of ``seconds`` in which the model prefilled documents without others, ``model_tokens`` of
    them. ``replaced`` are prefilled documents whose name stood for another file, and that file. ``averaged`` are the documents
    that got a variant for blending. ``without_neighbours`` are those that got none, since no other document fits before them in
    the model's context. ``collected`` are those of which inputs of stages were measured. ``files_read`` and
    ``files_total`` tell how far planning is, which comes before the model runs.
    """

    store: str = ""
    model: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    prefilled: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    averaged: list[str] = field(default_factory=list)
    without_neighbours: list[str] = field(default_factory=list)
    collected: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    warnings: list[DocumentError] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    entries: dict[str, str] = field(default_factory=dict)
    files_read: int = 0
    files_total: int = 0
    tokens: int = 0
    tokens_total: int = 0
    seconds: float = 0.0
    model_tokens: int = 0
    model_seconds: float = 0.0

    def repeated(self, names: Iterable[str]) -> Report:
        """The report of the same run, done again: there is nothing left to do. ``names`` give the documents' order."""
        done = {*self.unchanged, *self.prefilled}
        return Report(
            self.store,
            self.model,
            unchanged=[name for name in names if name in done],
            without_neighbours=self.without_neighbours,
            warnings=self.warnings,
            passed_over=self.passed_over,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "model": dict(self.model),
            "dry_run": self.dry_run,
            "prefilled": list(self.prefilled),
            "unchanged": list(self.unchanged),
            "replaced": dict(self.replaced),
            "averaged": list(self.averaged),
            "without_neighbours": list(self.without_neighbours),
            "collected": list(self.collected),
            "problems": [error.to_json() for error in self.problems],
            "warnings": [warning.to_json() for warning in self.warnings],
            "passed_over": dict(self.passed_over),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }
