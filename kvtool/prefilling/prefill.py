"""Documents → raw artifacts in a store.

What the store has already is found by identity (model, prefix, tokens), not by name or date. Work is cut the same way
whether or not parts of it are done. So an interrupted run, started again, ends with the bytes of one that was not
interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from kvtool.blending import averaged
from kvtool.documents.load import Account, Loaded, NamedBytes, load
from kvtool.documents.read import shown
from kvtool.engines import transformers as engine
from kvtool.errors import DocumentError, MismatchError, StoreError, UsageError
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.prefilling.collect import collect_inputs, needs_of
from kvtool.prefilling.inputs import PREFILLED
from kvtool.prefilling.plan import Plan, plan_document
from kvtool.prefilling.prefix import prefix_for
from kvtool.prefilling.report import Report
from kvtool.prefilling.run import Run
from kvtool.store.base import Store
from kvtool.store.catalog.sources import other_file
from kvtool.store.local import LocalStore, writable

PACK_TOKENS = 512
"""Tokens of a pass that short segments share, at most. In larger ones, attention to masked tokens costs more than is won."""


def prefill(
    paths: str | Path | Iterable[str | Path | NamedBytes],
    *,
    model: Model,
    store: Store,
    system: str | None = None,
    prefix_text: str | None = None,
    no_prefix: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    encoding: str | None = None,
    segment_tokens: int | None = None,
    step_tokens: int = engine.STEP_TOKENS,
    pack_tokens: int = PACK_TOKENS,
    neighbours: int = 0,
    collect: Sequence[str] = (),
    replace: bool | Collection[str] = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Prefills the documents in or under ``paths`` that ``store`` does not hold yet.

    Every segment is prefilled after one prefix (see ``prefix_for``). Documents longer than
    ``segment_tokens`` (default: the model's context less the prefix and room for a question and its answer) are
    split at paragraph or sentence boundaries. A document that cannot be read is reported and the others go on.
    A name that has another model's or prefix's cache, or another file's text, is left alone unless ``replace``,
    which may be a collection of names.

    Text is read as UTF-8 or in the encoding that a file declares; ``encoding`` overrules both. What may not have been
    read wholly or rightly is among the report's ``warnings``.

    With ``neighbours`` each segment is prefilled after that many other documents of the store too. The mean is kept as a
    variant of its own, for blending (``kvtool.blending.averaged``).

    ``collect`` names recipes; what their stages need beside keys and values is measured, and kept in a variant of its own, so
    that ``compress`` runs no model for them.

    Raises ``ModelError`` for a family whose state is not keys and values, ``UsageError`` for options.
    """
    started = time.monotonic()
    store = writable(store)
    if not dry_run:
        store.check_key()
    engine.windows(model)
    if step_tokens < 1 or pack_tokens < 0 or neighbours < 0:
        values = f"step tokens {step_tokens}, pack tokens {pack_tokens} and neighbours {neighbours}"
        raise UsageError(values, "expected at least 1, 0 and 0")
    needs = needs_of(collect)
    prefix = prefix_for(store, model, system=system, text=prefix_text, none=no_prefix)
    limit = segment_limit(model, prefix, segment_tokens)
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    report = _report(store, model, dry_run)
    account = Account(report.problems, report.warnings, report.passed_over)

    def reading(done: int, total: int) -> None:
        report.files_read, report.files_total = done, total
        on_progress(report)

    documents = load(paths, account, include=include, exclude=exclude, encoding=encoding, on_progress=reading)
    plans = _plan(documents, store, model, prefix, limit, replace, report, on_progress)
    if dry_run:
        known = store.known()
        for plan in plans:
            done = all(piece.identity in known for piece in plan.pieces)
            (report.unchanged if done else report.prefilled).append(plan.name)
            missing = (piece for piece in plan.pieces if piece.identity not in known)
            report.tokens_total += sum(len(piece.token_ids) for piece in missing)
    elif plans:
        with store.writing():
            Run(plans, model, store, prefix, step_tokens, report, on_progress).run_all(pack_tokens)
            if neighbours:
                _average(store, model, neighbours, report, on_progress)
            if needs:
                _collect(store, model, needs, report, on_progress)
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
    """Prefills ``text`` to the bytes that ``prefill`` gives a file of this ``name`` with it. ``run`` runs the passes.

    Raises ``DocumentError`` for a text without tokens, ``MismatchError`` for a name that holds another model's cache.
    """
    store = writable(store)
    store.check_name(name)
    store.check_key()
    plan = plan_document(name, text, model, prefix, segment_limit(model, prefix))
    _refuse_replacing(plan, store, model, prefix, replace=False)
    report = _report(store, model)
    with store.writing():
        Run([plan], model, store, prefix, step_tokens, report, on_progress, run).run_all(PACK_TOKENS)
    return report


def segment_limit(model: Model, prefix: Prefix, segment_tokens: int | None = None) -> int:
    """Tokens that a segment may have. Raises ``UsageError`` if the context has no room for ``segment_tokens``."""
    most = model.context - len(prefix.token_ids)
    limit = most - min(1024, model.context // 8) if segment_tokens is None else segment_tokens
    if not 0 < limit < most:
        room = (
            f"the context of {model.name} ({model.context}) leaves after a prefix of {len(prefix.token_ids)}"
        )
        expected = f"expected 1 to {most - 1}, what {room} and before a question"
        raise UsageError(f"segment tokens {limit}", expected)
    return limit


def _report(store: Store, model: Model, dry_run: bool = False) -> Report:
    return Report(str(store), {"name": model.name, "fingerprint": model.fingerprint}, dry_run)


def _plan(
    documents: Iterable[Loaded],
    store: LocalStore,
    model: Model,
    prefix: Prefix,
    limit: int,
    replace: bool | Collection[str],
    report: Report,
    on_progress: Callable[[Report], None],
) -> list[Plan]:
    """A plan for each document that can be prefilled. Why others cannot is added to the report's problems."""
    plans = []
    for document in documents:
        try:
            store.check_name(document.name)
            name, text, path = document
            plan = plan_document(name, text, model, prefix, limit, path, lambda: on_progress(report))
            may_replace = replace if isinstance(replace, bool) else document.name in replace
            _refuse_replacing(plan, store, model, prefix, may_replace)
            plans.append(plan)
        except (DocumentError, MismatchError, StoreError) as error:
            report.problems.append(error)
    return plans


def _average(
    store: LocalStore, model: Model, neighbours: int, report: Report, on_progress: Callable[[Report], None]
) -> None:
    """Makes the variant for blending, and adds to ``report`` what that did."""
    tokens, tokens_total = report.tokens, report.tokens_total

    def progress(done: averaged.Report) -> None:
        report.tokens, report.tokens_total = tokens + done.tokens, tokens_total + done.tokens_total
        on_progress(report)

    names = [*report.prefilled, *report.unchanged]
    result = averaged.make_averaged(store, model, names, neighbours=neighbours, on_progress=progress)
    report.averaged, report.without_neighbours = result.made, result.without_neighbours


def _collect(
    store: LocalStore,
    model: Model,
    needs: frozenset[str],
    report: Report,
    on_progress: Callable[[Report], None],
) -> None:
    """Measures what is collected, and adds to ``report`` what that did."""
    names = [*report.prefilled, *report.unchanged]
    report.tokens_total += sum(store[name].n_tokens for name in names)

    def progress(tokens: int) -> None:
        report.tokens += tokens
        on_progress(report)

    report.collected = collect_inputs(store, model, names, needs, progress)
    report.entries |= {name: store[name].state(PREFILLED) for name in report.collected}


def _refuse_replacing(plan: Plan, store: LocalStore, model: Model, prefix: Prefix, replace: bool) -> None:
    if replace or plan.name not in store:
        return
    existing = store[plan.name]
    for what, old, new in (
        ("model", existing.model["fingerprint"], model.fingerprint),
        ("prefix", existing.prefix["digest"], prefix.digest),
    ):
        if old != new:
            reason = f"the store holds it for another {what} ({old[:12]}…, this one is {new[:12]}…)"
            raise MismatchError(plan.name, reason, "use another --store, or --replace")
    if existing.is_blend:
        remedy = "use another --store, or --replace"
        raise MismatchError(plan.name, "the store holds a blend of other documents of that name", remedy)
    other = other_file(store.sources.get(existing), plan.path)
    if other and other.exists() and existing.text_digest != plan.text_digest:
        new = shown(plan.path) if plan.path else "what was sent"
        reason = f"the store holds it from {shown(other)}, and {new} has another text"
        remedy = "work from a folder that holds both, use another --store, or --replace"
        raise MismatchError(plan.name, reason, remedy)
