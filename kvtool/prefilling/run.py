"""Computes the segments that a store does not have, and commits each document with its last one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from kvtool.artifact.identity import prefix_identity
from kvtool.artifact.write import prefix_content, raw_content
from kvtool.codecs import KV
from kvtool.engines import transformers as engine
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import StoreError
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.prefilling.inputs import PREFILLED
from kvtool.prefilling.plan import Piece, Plan, passes
from kvtool.prefilling.report import Report
from kvtool.store.catalog.sources import other_file
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW, Document, Segment, Variant
from kvtool.store.new_document import new_document


class Run:
    """One run of the model over the missing segments of ``plans``.

    What one pass gave is stored while the next computes, in a thread of its own.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        model: Model,
        store: LocalStore,
        prefix: Prefix,
        step: int,
        report: Report,
        on_progress: Callable[[Report], None],
        run: engine.Runner = engine.at_once,
    ) -> None:
        self.plans, self.model, self.store, self.prefix = plans, model, store, prefix
        self.step, self.report, self.on_progress, self.run = step, report, on_progress, run
        self.known = store.known()
        self.missing = {plan.name: {p.identity for p in plan.pieces} - self.known.keys() for plan in plans}
        self.waiting: dict[str, list[Plan]] = {}
        self._storing: Future[None] | None = None

    def run_all(self, pack_tokens: int) -> None:
        """Computes, stores and commits everything. Short segments share passes of up to ``pack_tokens`` tokens."""
        units = passes((p for plan in self.plans for p in plan.pieces), pack_tokens)
        units = [unit for unit in units if any(piece.identity not in self.known for piece in unit)]
        self.report.tokens_total = sum(len(piece.token_ids) for unit in units for piece in unit)
        self.prefix_artifact = self._put_prefix()
        for plan in self.plans:
            for identity in self.missing[plan.name]:
                self.waiting.setdefault(identity, []).append(plan)
            if not self.missing[plan.name]:
                self._commit(plan)
        with ThreadPoolExecutor(1) as writer:
            for unit in units:
                kvs = self._compute(unit)
                self._storing = writer.submit(self._store, unit, kvs)
                # The thread alone holds the KV now, and lets it go once it is stored.
                del kvs
            self._settle()

    def _compute(self, unit: Sequence[Piece]) -> list[KV]:
        prefiller = self.prefiller
        started = time.monotonic()
        kvs = prefiller.many([piece.token_ids for piece in unit], self._advance)
        self.report.model_seconds += time.monotonic() - started
        return kvs

    def _advance(self, tokens: int) -> None:
        # After a segment's first step, so that two segments' KVs are never in memory whole.
        self._settle()
        self.report.tokens += tokens
        self.report.model_tokens += tokens
        self.on_progress(self.report)

    def _settle(self) -> None:
        """Waits until the results of the pass before are stored. Raises what storing them raised."""
        if self._storing:
            self._storing.result()
            self._storing = None

    def _store(self, unit: Sequence[Piece], kvs: Sequence[KV]) -> None:
        for piece, kv in zip(unit, kvs, strict=True):
            if piece.identity not in self.known:
                content = raw_content(kv, self.model, self.prefix, piece.source)
                self.known[piece.identity] = self.store.put(content)
                for plan in self.waiting[piece.identity]:
                    self.missing[plan.name].discard(piece.identity)
                    if not self.missing[plan.name]:
                        self._commit(plan)

    def _commit(self, plan: Plan) -> None:
        with self.store.changing():
            try:
                old = self.store.get(plan.name)
            except StoreError:
                old = None  # A broken manifest comes this far only to be replaced.
            document = self._document(plan, old)
            source = self.store.sources.get(old) if old else None
            other = other_file(source, plan.path)
            if old and other and old.text_digest != plan.text_digest:
                self.report.replaced[plan.name] = str(other)
            if document != old:
                self.store.commit(document)
            if old and old.text_digest != plan.text_digest:
                source = None  # The record is one of another text.
            if plan.path and source != plan.path and (document != old or not other):
                self.store.sources.put(document, plan.path)
        self.report.entries[plan.name] = document.state(PREFILLED)
        (self.report.unchanged if document == old else self.report.prefilled).append(plan.name)

    def _document(self, plan: Plan, old: Document | None) -> Document:
        """The new entry. Variants of segments that ``old`` had too are kept."""
        variants = {s.identity: s.variants for s in old.segments} if old else {}
        segments = []
        for piece in plan.pieces:
            kept = {**variants.get(piece.identity, {}), RAW: self.known[piece.identity]}
            segments.append(Segment(piece.identity, len(piece.token_ids), piece.start, piece.end, kept))
        prefix, artifact = self.prefix, self.prefix_artifact
        return new_document(plan.name, plan.text_digest, self.model, prefix, artifact, tuple(segments))

    def _put_prefix(self) -> Variant | None:
        if not self.prefix.token_ids:
            return None
        identity = prefix_identity(self.model, self.prefix)
        if identity not in self.known:
            kv = self.prefiller.prefix
            assert kv is not None
            self.known[identity] = self.store.put(prefix_content(kv, self.model, self.prefix))
        return self.known[identity]

    @cached_property
    def prefiller(self) -> Prefiller:
        return Prefiller(self.model, self.prefix.token_ids, step=self.step, run=self.run)
