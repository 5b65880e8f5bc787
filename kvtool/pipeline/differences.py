"""How a lock, its store and the sources differ: what a build has to do, and what ``kvtool build --check`` names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvtool.digest import Json
from kvtool.pipeline.gate_state import wanted_gates
from kvtool.pipeline.holdings import Holdings
from kvtool.pipeline.lock import LOCK, Lock
from kvtool.pipeline.project import Project
from kvtool.pipeline.source_state import SourceState
from kvtool.prefilling.inputs import PREFILLED
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.layout import CALIBRATIONS
from kvtool.store.trust.keys import has_signing_key, key_id, signing_key
from kvtool.store.trust.signatures import has_signed

Step = Literal["prefill", "remove", "compress", "evaluate", "sign", "push", "lock"]


@dataclass(frozen=True)
class Difference:
    """``subject`` is not as it should be, for this ``reason``; the step ``step`` of a build, of a ``variant``, mends that.

    Of a gate, ``variant`` is the name of what it measures, which may be a blend.
    """

    step: Step
    subject: str
    reason: str
    variant: str | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"

    def to_json(self) -> dict[str, str]:
        return {"step": self.step, "subject": self.subject, "reason": self.reason}


def differences(
    project: Project, sources: SourceState, lock: Lock | None, catalog: LocalCatalog
) -> list[Difference]:
    """Everything that differs, in the order of a build's steps. Reads manifests, and no artifact."""
    if lock is None:
        missing = Difference("lock", str(LOCK), "is missing")
        return [missing, *(Difference("prefill", name, "is new") for name in sources.documents)]
    holdings = Holdings(catalog)
    found = [*_of_prefill(sources, lock, holdings), *_removed(sources, lock)]
    found += _of_variants(project, sources, lock, holdings)
    found += _of_gates(project, sources, lock)
    found += _of_signatures(project, lock, holdings)
    if project.push and lock.pushed.get(project.push) != lock.built:
        found.append(Difference("push", project.push, "was not sent all of it"))
    return found


def due_variants(project: Project, lock: Lock | None, found: Sequence[Difference]) -> list[str]:
    """Variants that may be missing, or made otherwise, of some document: compressing finds out of which."""
    changed = lock is None or any(one.step == "prefill" for one in found)
    named = {one.variant for one in found if one.step == "compress"}
    return [name for name in project.by_name if changed or name in named]


def _of_prefill(sources: SourceState, lock: Lock, holdings: Holdings) -> Iterator[Difference]:
    for what, now, then in (
        ("model", sources.model, lock.model),
        ("setting", sources.settings, lock.settings),
    ):
        for field in now:
            if now[field] != then.get(field):
                reason = f"is {_short(now[field])}, it was {_short(then.get(field))}"
                yield Difference("prefill", f"{what} {field}", reason)
    for name, digest in sources.documents.items():
        entry = lock.documents.get(name)
        if entry is None:
            yield Difference("prefill", name, "is new")
        elif entry.source != digest:
            yield Difference("prefill", name, "has changed")
        elif lacking := holdings.lacking(name, entry, PREFILLED):
            yield Difference("prefill", name, lacking)


def _removed(sources: SourceState, lock: Lock) -> Iterator[Difference]:
    for name in lock.documents:
        if name not in sources.documents:
            yield Difference("remove", name, "is no longer among the documents")


def _of_variants(
    project: Project, sources: SourceState, lock: Lock, holdings: Holdings
) -> Iterator[Difference]:
    wanted = project.by_name
    for name, one in wanted.items():
        then = lock.variants.get(name)
        if then is None or then.options != one.given:
            reason = "is new" if then is None else "is to be made otherwise"
            yield Difference("compress", f"variant {name}", reason, name)
            continue
        for calibration in then.calibrations:
            if not (holdings.catalog.root / CALIBRATIONS / f"{calibration}.safetensors").is_file():
                yield Difference(
                    "compress", f"variant {name}", "its calibration is missing in the store", name
                )
        for document, entry in lock.documents.items():
            is_same = sources.documents.get(document) == entry.source
            if is_same and (lacking := holdings.lacking(document, entry, {name})):
                yield Difference("compress", document, f"{lacking}, variant {name}", name)
    for name in lock.variants:
        if name not in wanted:
            yield Difference("lock", f"variant {name}", "is no longer wanted")


def _of_gates(project: Project, sources: SourceState, lock: Lock) -> Iterator[Difference]:
    for name, wanted in wanted_gates(project, sources, lock).items():
        passed = lock.gates.get(name)
        if passed is None or passed.limits != wanted.limits:
            yield Difference("evaluate", f"gate of {name}", "was not passed with these limits", name)
        elif passed.of != wanted.of:
            reason = "was passed by other artifacts, or measured otherwise"
            yield Difference("evaluate", f"gate of {name}", reason, name)


def _of_signatures(project: Project, lock: Lock, holdings: Holdings) -> Iterator[Difference]:
    """Documents that the key of the environment, if it has one, has not signed."""
    if not has_signing_key():
        return
    public = signing_key().public_key()
    for name, entry in lock.documents.items():
        document = holdings.document(name) if entry.segments else None
        if document and not has_signed(document.with_variants({*PREFILLED, *project.by_name}), public):
            yield Difference("sign", name, f"is not signed with key {key_id(public)}")


def _short(value: Json) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
