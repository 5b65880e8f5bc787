"""Every candidate on every context, one context at a time; what was measured before is taken from the journal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtool.codecs import KV
from kvtool.engines.prefiller import Prefiller
from kvtool.evaluation.candidates import Candidate
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, Place
from kvtool.measurement.reference import measure, reference
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Variant


@dataclass
class Progress:
    """``done`` of ``total`` tokens, counted once for each candidate; ``kept`` measurements were there already."""

    what: str = ""
    done: int = 0
    total: int = 0
    measured: int = 0
    kept: int = 0


OnProgress = Callable[[Progress], None]


@dataclass
class Runner:
    """Measures contexts of ``store``'s documents and of others, all behind ``prefix``, as ``stored`` if it is."""

    store: Store
    model: Model
    prefix: Prefix
    stored: Variant | None
    candidates: Sequence[Candidate]
    fresh: bool = False
    on_progress: OnProgress = lambda _: None
    progress: Progress = field(default_factory=Progress)
    _prefiller: Prefiller | None = None

    @contextmanager
    def bench(self) -> Iterator[Bench]:
        """A bench in a directory of its own, which goes with it."""
        with tempfile.TemporaryDirectory(prefix="kvtool-eval-") as folder:
            yield Bench(Path(folder), self.model, self.prefix, self._prefix())

    def measure(self, bench: Bench, context: Context) -> list[dict[str, Any]]:
        """A record for each candidate, as ``measure`` gives it."""
        identity = context.identity(self.model, self.prefix)
        keys = [journal.key("measured", identity, candidate.identity) for candidate in self.candidates]
        records = [None if self.fresh else journal.recall(key) for key in keys]
        self.progress.what = context.name
        kept = sum(record is not None for record in records)
        self.progress.kept += kept
        # What is kept takes no time: counted as done, it would promise too much of the rest.
        self.progress.total -= context.cost * kept
        if kept == len(records):
            self.progress.total -= context.prefill_cost
        else:
            with bench.holding(self.kv(context)):
                self._advance(context.prefill_cost)
                raw = reference(bench, context)
                for n, candidate in enumerate(self.candidates):
                    if records[n] is None:
                        records[n] = measure(bench, context, candidate, raw)
                        journal.remember(keys[n], records[n])
                        self.progress.measured += 1
                        self._advance(context.cost)
        return [record for record in records if record is not None]

    def kv(self, context: Context) -> KV:
        """The raw KV of a context: the head of what the store holds, or prefilled now."""
        if context.place is None:
            return self.prefiller().one(context.token_ids)
        return head(self.store, context.place, len(context.token_ids))

    def turn(self, context: Context) -> Callable[[str], None]:
        """To be called with what was timed just now, over ``context``."""

        def on_turn(name: str) -> None:
            self.progress.what = f"times: {name}"
            self._advance(len(context.token_ids))

        return on_turn

    def _advance(self, cost: int) -> None:
        self.progress.done += cost
        self.on_progress(self.progress)

    def prefiller(self) -> Prefiller:
        """What computes contexts that no store holds."""
        if self._prefiller is None:
            self._prefiller = Prefiller(self.model, self.prefix.token_ids)
        return self._prefiller

    def _prefix(self) -> KV | None:
        return None if self.stored is None else self.store.open_artifact(self.stored).kv()


def head(store: Store, place: Place, tokens: int) -> KV:
    """The KV of a segment's first tokens, as views."""
    return store.read(place.document, segment=place.segment).of(range(tokens))
