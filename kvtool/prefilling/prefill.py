"""Documents → raw artifacts in a store.

What is already there is found by identity (model, prefix, tokens), not by name or date. Work is cut the same way
whether or not parts of it are done, so that an interrupted run, started again, ends with the bytes of one that was
not interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.artifact.identity import prefix_identity
from kvtool.artifact.write import prefix_content, raw_content
from kvtool.blending import averaged
from kvtool.codecs import KV
from kvtool.documents.find import find
from kvtool.documents.read import read_text
from kvtool.engines import transformers as engine
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import DocumentError, KvtoolError, MismatchError, StoreError, UsageError
from kvtool.model.chat_template import Prefix, prefix_of
from kvtool.model.model import Model
from kvtool.prefilling.plan import Piece, Plan, passes, plan_document
from kvtool.store.base import Store
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import RAW, Document, Segment, Variant
from kvtool.store.new_document import new_document

PACK_TOKENS = 512
"""Short segments share a pass of up to this many tokens. In larger ones, attention to masked tokens costs more than is won."""


@dataclass
class Report:
    """What a run has done so far. ``problems`` are the documents that could not be prefilled, with the reasons.

    ``tokens`` are those that the model ran: whole passes, though some of their documents were there already.
    ``model_seconds`` is the part of ``seconds`` in which the model read documents alone, ``model_tokens`` of them.
    ``averaged`` are the documents that got a variant for blending, ``without_neighbours`` those that no other document fits
    before within the model's context.
    """

    prefilled: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    tokens: int = 0
    tokens_total: int = 0
    seconds: float = 0.0
    model_tokens: int = 0
    model_seconds: float = 0.0
    averaged: list[str] = field(default_factory=list)
    without_neighbours: list[str] = field(default_factory=list)


def prefill(
    paths: str | Path | Iterable[str | Path],
    *,
    model: Model,
    store: Store,
    system: str | None = None,
    prefix_text: str | None = None,
    no_prefix: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    segment_tokens: int | None = None,
    step_tokens: int = engine.STEP_TOKENS,
    pack_tokens: int = PACK_TOKENS,
    neighbours: int = 0,
    replace: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Prefills the documents under ``paths`` that ``store`` does not hold yet.

    Every segment is prefilled behind one prefix (see ``prompt.prefix_of``). Documents longer than
    ``segment_tokens`` (default: the model's context less the prefix and room for a question and its answer) are
    split at paragraph or sentence boundaries. A document that cannot be read is reported and the others go on.
    A name that holds another model's or prefix's cache is left alone unless ``replace``.

    With ``neighbours`` each segment is prefilled behind so many other documents of the store too, and the mean is kept as
    the variant ``averaged``, for blending (``kvtool.blending.averaged``).

    Raises ``ModelError`` for a family whose state is not keys and values, ``UsageError`` for options.
    """
    started = time.monotonic()
    store = writable(store)
    engine.windows(model)
    if step_tokens < 1 or pack_tokens < 0 or neighbours < 0:
        raise UsageError(
            f"step tokens {step_tokens}, pack tokens {pack_tokens} and neighbours {neighbours}",
            "expected at least 1, 0 and 0",
        )
    prefix = prefix_of(model, system=system, text=prefix_text, none=no_prefix)
    limit = segment_limit(model, prefix, segment_tokens)
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found, problems = find(paths, include=include, exclude=exclude)
    report = Report(problems=list(problems))
    plans = []
    for document in found:
        try:
            store.check_name(document.name)
            planned = plan_document(document.name, read_text(document.path), model, prefix, limit)
            _refuse_replacing(planned, store, model, prefix, replace)
            plans.append(planned)
        except (DocumentError, MismatchError, StoreError) as error:
            report.problems.append(error)
    if dry_run:
        known = store.known()
        for plan in plans:
            done = all(piece.identity in known for piece in plan.pieces)
            (report.unchanged if done else report.prefilled).append(plan.name)
    elif plans:
        with store.writing():
            _Run(plans, model, store, prefix, step_tokens, report, on_progress).run_all(pack_tokens)
            if neighbours:
                _average(store, model, neighbours, report, on_progress)
    report.seconds = time.monotonic() - started
    return report


def prefill_text(
    name: str,
    text: str,
    *,
    model: Model,
    store: Store,
    prefix: Prefix,
    step_tokens: int = engine.STEP_TOKENS,
    on_progress: Callable[[Report], None] = lambda _: None,
    run: engine.Runner = engine.at_once,
) -> Report:
    """Prefills ``text`` as ``prefill`` does a file of this ``name`` that holds it, to the byte; ``run`` runs the passes.

    Raises ``DocumentError`` for a text without tokens, ``MismatchError`` for a name that holds another model's cache.
    """
    store = writable(store)
    store.check_name(name)
    plan = plan_document(name, text, model, prefix, segment_limit(model, prefix))
    _refuse_replacing(plan, store, model, prefix, replace=False)
    report = Report()
    with store.writing():
        _Run([plan], model, store, prefix, step_tokens, report, on_progress, run).run_all(PACK_TOKENS)
    return report


def _average(
    store: LocalStore, model: Model, neighbours: int, report: Report, on_progress: Callable[[Report], None]
) -> None:
    before, total = report.tokens, report.tokens_total

    def progress(done: averaged.Report) -> None:
        report.tokens, report.tokens_total = before + done.tokens, total + done.tokens_total
        on_progress(report)

    names = [*report.prefilled, *report.unchanged]
    done = averaged.average(store, model, names, neighbours=neighbours, on_progress=progress)
    report.averaged, report.without_neighbours = done.made, done.without_neighbours


def segment_limit(model: Model, prefix: Prefix, asked: int | None = None) -> int:
    """Tokens that a segment may have. Raises ``UsageError`` if the context has no room for it."""
    most = model.context - len(prefix.token_ids)
    limit = most - min(1024, model.context // 8) if asked is None else asked
    if not 0 < limit < most:
        raise UsageError(
            f"segment tokens {limit}",
            (
                f"expected 1 to {most - 1}, what the context of {model.name} ({model.context}) leaves "
                f"behind a prefix of {len(prefix.token_ids)} and before a question"
            ),
        )
    return limit


def _refuse_replacing(plan: Plan, store: Store, model: Model, prefix: Prefix, replace: bool) -> None:
    if replace or plan.name not in store:
        return
    there = store[plan.name]
    for what, old, new in (
        ("model", there.model["fingerprint"], model.fingerprint),
        ("prefix", there.prefix["digest"], prefix.digest),
    ):
        if old != new:
            raise MismatchError(
                plan.name,
                f"the store holds it for another {what} ({old[:12]}…, this one is {new[:12]}…)",
                "use another --store, or --replace",
            )


class _Run:
    """Computes what is missing and stores it; a document is committed as soon as its last segment is stored.

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
        self._prefiller: Prefiller | None = None
        self._storing: Future[None] | None = None

    def run_all(self, pack_tokens: int) -> None:
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
        """Waits until what the pass before gave is stored; raises what storing it raised."""
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
            if document != old:
                self.store.commit(document)
        (self.report.unchanged if document == old else self.report.prefilled).append(plan.name)

    def _document(self, plan: Plan, old: Document | None) -> Document:
        """Variants of segments that ``old`` had too are kept."""
        variants = {s.identity: s.variants for s in old.segments} if old else {}
        return new_document(
            plan.name,
            plan.text_digest,
            self.model,
            self.prefix,
            self.prefix_artifact,
            tuple(
                Segment(
                    p.identity,
                    len(p.token_ids),
                    p.start,
                    p.end,
                    {**variants.get(p.identity, {}), RAW: self.known[p.identity]},
                )
                for p in plan.pieces
            ),
        )

    def _put_prefix(self) -> Variant | None:
        if not self.prefix.token_ids:
            return None
        identity = prefix_identity(self.model, self.prefix)
        if identity not in self.known:
            assert self.prefiller.prefix is not None
            self.known[identity] = self.store.put(
                prefix_content(self.prefiller.prefix, self.model, self.prefix)
            )
        return self.known[identity]

    @property
    def prefiller(self) -> Prefiller:
        if self._prefiller is None:
            self._prefiller = Prefiller(self.model, self.prefix.token_ids, step=self.step, run=self.run)
        return self._prefiller
