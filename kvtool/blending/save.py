"""Blends of known documents, made ahead of time and stored."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

from kvtool.artifact.identity import segment_identity
from kvtool.blending.blend import BlendOptions, blend
from kvtool.blending.cache import kept_side_by_side, made_entry, refuse_own_name
from kvtool.blending.layout import Layout, Part, lay_out, listed
from kvtool.blending.policies import policy_of
from kvtool.blending.record import BlendRecord, new_record, outdated_blends, record_of
from kvtool.errors import KvtoolError, StoreError, UsageError
from kvtool.model.chat_template import SEPARATOR
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import RAW, Document
from kvtool.system.trace import Trace


@dataclass(frozen=True)
class SavedBlend:
    """A stored blend. ``is_unchanged`` if it was there already, ``outdated`` says which documents had changed until now."""

    name: str
    store: str
    record: BlendRecord
    tokens: int
    nbytes: int
    recomputed_tokens: int
    seconds: float
    is_unchanged: bool = False
    outdated: tuple[str, ...] = ()
    dry_run: bool = False

    def repeated(self) -> SavedBlend:
        """What a repetition says, which finds nothing to do."""
        return replaced(self, recomputed_tokens=0, seconds=0.0, is_unchanged=True, outdated=())

    def to_json(self) -> dict[str, Any]:
        """The value that ``kvtool blend --json`` prints."""
        return {
            "name": self.name,
            "store": self.store,
            "documents": list(self.record.documents),
            "policy": self.record.policy,
            "recompute": self.record.recompute,
            "tokens": self.tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "bytes": self.nbytes,
            "unchanged": self.is_unchanged,
            "outdated": list(self.outdated),
            "dry_run": self.dry_run,
            "seconds": round(self.seconds, 4),
        }


def save_blend(
    name: str,
    parts: str | Part | Iterable[Part],
    model: Model,
    store: Store,
    *,
    variant: str = RAW,
    options: BlendOptions = BlendOptions(),
    separator: str = SEPARATOR,
    replace: bool = False,
    dry_run: bool = False,
    trace: Trace | None = None,
) -> SavedBlend:
    """Blends ``parts`` of ``store`` and stores the result there as the document ``name``, unless it is there already.

    A blend of the same order whose documents have changed since is made again. Anything else of that name is left alone
    unless ``replace``. Raises ``StoreError`` then and for a part that is a blend out of date, ``UsageError`` for what needs no
    blending or cannot be stored, and what ``kvtool.blend`` raises; all before the model runs. Raises ``StoreError`` too if
    another has stored something of that name meanwhile.
    """
    started = time.monotonic()
    store, parts = writable(store), listed(parts)
    store.check_name(name)
    layout = lay_out(store, parts, model, variant=variant, separator=separator)
    refuse_own_name(name, store, layout)
    _refuse_pointless(name, layout, options)
    for error in outdated_blends(store, layout.documents):
        raise error
    record = new_record(
        parts,
        layout,
        variant=variant,
        separator=separator,
        policy=options.policy,
        recompute=options.recompute,
    )
    identity = _identity(layout, model, options)
    existing = store.get(name)
    tokens, outdated = len(layout.token_ids), tuple[str, ...]()
    if existing:
        before = _recorded(store, name)
        if before == record and _is_whole(store, existing, identity):
            nbytes, seconds = existing.nbytes(RAW), time.monotonic() - started
            return SavedBlend(
                name, str(store), record, tokens, nbytes, 0, seconds, is_unchanged=True, dry_run=dry_run
            )
        outdated = _outdated(store, existing, before, record, model, replace)
    if dry_run:
        seconds = time.monotonic() - started
        return SavedBlend(name, str(store), record, tokens, 0, 0, seconds, outdated=outdated, dry_run=True)
    store.check_key()
    cache = blend(
        store,
        parts,
        model,
        recompute=options.recompute,
        policy=options.policy,
        variant=variant,
        separator=separator,
        trace=trace,
    )
    assert cache.record
    document, record = cache.save_over(existing, store, name, model), cache.record
    nbytes, seconds = document.nbytes(RAW), time.monotonic() - started
    return SavedBlend(name, str(store), record, tokens, nbytes, cache.recomputed, seconds, outdated=outdated)


def _refuse_pointless(name: str, layout: Layout, options: BlendOptions) -> None:
    policy = policy_of(options.policy)
    if layout.is_alone:
        reason = f"{', '.join(layout.documents)} alone is one segment, whose own cache is right for its place"
        raise UsageError(name, reason, "name several documents")
    if policy.parallel:
        raise kept_side_by_side(name, options.policy)
    if policy.needs_question and options.recompute:
        reason = "chooses tokens by the question that follows, and no question is known ahead of time"
        raise UsageError(f"policy {options.policy!r}", reason, "take another policy, such as drift")
    if layout.pruned and options.recompute != 1:
        reason = f"{', '.join(layout.pruned)} was pruned, and what is stored has every token"
        raise UsageError(name, reason, "take a variant that keeps every token, or recompute 1")


def _identity(layout: Layout, model: Model, options: BlendOptions) -> str:
    """The identity of the artifact, known before it is made."""
    ids = layout.token_ids[layout.prefix_tokens :].tolist()
    prefix = layout.segments[-1].artifact.meta["prefix"]["digest"]
    made = made_entry(layout, options.made(layout))
    return segment_identity(model.fingerprint, prefix, ids, made=made)


def _is_whole(store: LocalStore, document: Document, identity: str) -> bool:
    (first, *others) = document.segments
    raw = first.variants.get(RAW)
    return not others and first.identity == identity and raw is not None and store.holds_whole(raw)


def _recorded(store: LocalStore, name: str) -> BlendRecord | None:
    """The record of what is stored as ``name``; None where that says none, or cannot be read."""
    with suppress(KvtoolError):
        return record_of(store, name)
    return None


def _outdated(
    store: LocalStore,
    existing: Document,
    before: BlendRecord | None,
    record: BlendRecord,
    model: Model,
    replace: bool,
) -> tuple[str, ...]:
    """The documents that have changed since ``existing`` was blended. Raises ``StoreError`` for what may not be replaced."""
    is_of_model = existing.model["fingerprint"] == model.fingerprint
    if before and before.order == record.order and (is_of_model or replace):
        return tuple(before.outdated(store))
    if not replace:
        what = "a document of its own"
        if existing.is_blend:
            what = (
                f"a blend of {', '.join(before.documents)}, or made otherwise" if before else "another blend"
            )
        if not is_of_model:
            what = f"the cache of another model, {existing.model['name']}"
        raise StoreError(
            existing.name, f"is in the store already, as {what}", "choose another name, or --replace"
        )
    return ()
