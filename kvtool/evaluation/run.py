"""Runs every candidate on every context, one context at a time. Earlier measurements come from the journal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvtool.codecs import KV
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import StoreError
from kvtool.evaluation.candidates import Candidate
from kvtool.evaluation.measure import measure
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, first_tokens
from kvtool.measurement.reference import measure_reference
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Variant


@dataclass
class Progress:
    """``done`` of ``total`` tokens, counted once for each candidate, and how many measurements were made and ``kept``.

    Those that were kept come from an earlier run.
    """

    what: str = ""
    done: int = 0
    total: int = 0
    measured: int = 0
    kept: int = 0


OnProgress = Callable[[Progress], None]


@dataclass
class Runner:
    """Measures contexts, of ``store``'s documents and others, after one ``prefix``.

    ``prefix_artifact`` is the store's artifact of that prefix, None for an empty one.
    """

    store: Store
    model: Model
    prefix: Prefix
    prefix_artifact: Variant | None
    candidates: Sequence[Candidate]
    fresh: bool = False
    on_progress: OnProgress = lambda _: None
    progress: Progress = field(default_factory=Progress)

    @contextmanager
    def bench(self) -> Iterator[Bench]:
        """A bench in a temporary directory."""
        prefix_kv = self.store.open_artifact(self.prefix_artifact).kv() if self.prefix_artifact else None
        with tempfile.TemporaryDirectory(prefix="kvtool-eval-") as folder:
            yield Bench(Path(folder), self.model, self.prefix, prefix_kv, self.store.encrypted_with)

    def measure(self, bench: Bench, context: Context) -> list[dict[str, Any]]:
        """A record for each candidate, as ``kvtool.evaluation.measure.measure`` gives it."""
        identity = context.identity(self.model, self.prefix)
        keys = [journal.key("measured", identity, candidate.identity) for candidate in self.candidates]
        records = [None if self.fresh else journal.recall(key) for key in keys]
        self.progress.what = context.name
        kept = sum(record is not None for record in records)
        self.progress.kept += kept
        # Kept measurements take no time. Counted as done, they would make the rest look too quick.
        self.progress.total -= context.cost * kept
        if kept == len(records):
            self.progress.total -= context.prefill_cost
        else:
            with bench.holding(self.kv(context)):
                self._advance(context.prefill_cost)
                reference = measure_reference(bench, context)
                for n, candidate in enumerate(self.candidates):
                    if records[n] is None:
                        records[n] = measure(bench, context, candidate, reference)
                        journal.remember(keys[n], records[n])
                        self.progress.measured += 1
                        self._advance(context.cost)
        return [record for record in records if record is not None]

    def kv(self, context: Context) -> KV:
        """The raw keys and values of a context: the first tokens of a stored segment, or prefilled now.

        Raises ``StoreError`` where the segment has other tokens by now: what is measured would be kept as the context's.
        """
        if context.segment is None:
            return self._prefiller.one(context.token_ids)
        kv = first_tokens(self.store, context.segment, len(context.token_ids))
        if kv.token_ids.tolist() != list(context.token_ids):
            name = context.segment.document
            raise StoreError(name, "was replaced while it was being measured", "measure it again")
        return kv

    def timed(self, context: Context) -> Callable[[str], None]:
        """A callback that counts ``context`` as done; its argument names what was timed."""

        def on_timed(name: str) -> None:
            self.progress.what = f"times: {name}"
            self._advance(len(context.token_ids))

        return on_timed

    def _advance(self, cost: int) -> None:
        self.progress.done += cost
        self.on_progress(self.progress)

    @cached_property
    def _prefiller(self) -> Prefiller:
        return Prefiller(self.model, self.prefix.token_ids)
