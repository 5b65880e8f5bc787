"""A project's documents → its store: prefill, remove, compress, verify, gates, and then the lock. Only what differs is done."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.calibration.learning import OnProgress
from kvtool.compression.compress import compress
from kvtool.compression.report import Report as CompressReport
from kvtool.config import Settings
from kvtool.errors import DocumentError, KvtoolError, StoreError
from kvtool.evaluation.run import Progress as Evaluating
from kvtool.model.model import Model
from kvtool.model.prefill_speed import remember
from kvtool.pipeline.differences import Difference, due_variants
from kvtool.pipeline.gate_state import wanted_gates
from kvtool.pipeline.gates import evaluate_gates
from kvtool.pipeline.holdings import Holdings, Lack
from kvtool.pipeline.lock import Lock, LockedDocument, PassedGate
from kvtool.pipeline.project import Project
from kvtool.pipeline.source_state import SourceState
from kvtool.prefilling.inputs import PREFILLED, prefill_options
from kvtool.prefilling.prefill import prefill
from kvtool.prefilling.report import Report as PrefillReport
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW, Variant
from kvtool.store.transfer.push import push
from kvtool.store.transfer.transfer import Report as PushReport
from kvtool.store.trust.keys import has_signing_key, signing_key
from kvtool.store.trust.signatures import sign


@dataclass(frozen=True)
class Watch:
    """Gets the progress of each step."""

    say: Callable[[str], None] = lambda _: None
    prefill: Callable[[PrefillReport], None] = lambda _: None
    calibrate: OnProgress = lambda _: None
    compress: Callable[[CompressReport], None] = lambda _: None
    evaluate: Callable[[Evaluating], None] = lambda _: None
    push: Callable[[PushReport], None] = lambda _: None


@dataclass
class Report:
    """Results of a build. ``verified`` artifacts were read whole. ``checks`` are those of gates, from ``evaluation``.

    Without a ``lock`` the build stopped at ``problems``. With one, they are of gates that could not be measured, or of what was
    not ``pushed``. What was made until then stays in the store.
    """

    differences: Sequence[Difference]
    prefilled: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    compressed: dict[str, list[str]] = field(default_factory=dict)
    verified: int = 0
    signed: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    problems: list[KvtoolError] = field(default_factory=list)
    warnings: list[DocumentError] = field(default_factory=list)
    lock: Lock | None = None
    seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        return all(check["passed"] for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "differences": [one.to_json() for one in self.differences],
            "prefilled": self.prefilled,
            "removed": self.removed,
            "compressed": self.compressed,
            "verified": self.verified,
            "gate": self.checks,
            "signed": self.signed,
            "pushed": self.pushed,
            "problems": [error.to_json() for error in self.problems],
            "warnings": [warning.to_json() for warning in self.warnings],
            "seconds": round(self.seconds, 3),
        }


def build(
    project: Project,
    settings: Settings,
    sources: SourceState,
    store: LocalStore,
    lock: Lock | None,
    differences: Sequence[Difference],
    *,
    load_model: Callable[[], Model],
    watch: Watch = Watch(),
) -> Report:
    """Makes ``store`` what ``sources`` say. The report has the new lock.

    ``differences`` are those between ``lock`` and the rest. ``load_model`` is called if a step runs the model. Documents that the
    last build made and that are no sources any more are removed. What others put into the store is not replaced or removed.
    """
    started = time.monotonic()
    report = Report(differences)
    run = _Build(project, settings, sources, store, lock, report, functools.cache(load_model), watch)
    run.run()
    report.seconds = time.monotonic() - started
    return report


@dataclass
class _Build:
    project: Project
    settings: Settings
    sources: SourceState
    store: LocalStore
    before: Lock | None
    report: Report
    model: Callable[[], Model]
    watch: Watch

    def run(self) -> None:
        self._discard_cut()
        if any(one.step == "prefill" for one in self.report.differences):
            self._prefill()
        if self.report.problems:
            return
        self._remove()
        for name in due_variants(self.project, self.before, self.report.differences):
            self._compress(name)
            if self.report.problems:
                return
        self._refuse_changed()
        if self.report.problems:
            return
        lock = Lock.of(self.project, self.sources, self.store)
        self._verify(lock)
        if self.report.problems:
            return
        self.report.lock = lock.with_gates(self._gates(lock))
        if not self.report.has_passed or self.report.problems:
            return
        if has_signing_key():
            self._sign(lock)
        if self.project.push and not self.report.problems:
            self._push(self.report.lock, self.project.push)

    def _discard_cut(self) -> None:
        """Removes files that are shorter than their artifacts, which would be taken for them."""
        for name in {*(one.subject for one in self.report.differences), *self.sources.documents}:
            for variant in self._artifacts(name):
                if self.store.holds(variant) and not self.store.holds_whole(variant):
                    self.store.discard(variant)

    def _artifacts(self, name: str) -> list[Variant]:
        try:
            document = self.store.get(name)
        except StoreError:
            return []  # A broken manifest, which prefill replaces.
        return document.artifacts if document else []

    def _prefill(self) -> None:
        options, warnings = prefill_options(self.settings)
        model = self.model()
        done = prefill(
            self.project.documents,
            model=model,
            store=self.store,
            replace={name for name in self.sources.documents if self._is_ours(name)},
            on_progress=self.watch.prefill,
            **options,
        )
        if done.model_tokens:
            remember(model.fingerprint, done.model_tokens, done.model_seconds)
        self.report.prefilled += done.prefilled
        self.report.problems += done.problems
        self.report.warnings += [*warnings, *done.warnings]

    def _is_ours(self, name: str) -> bool:
        """Whether the store holds a document as the last build left it, so that nothing of anybody else is lost."""
        entry = self.before.documents.get(name) if self.before else None
        if entry is None:
            return False
        return Holdings(self.store).lacking(name, entry, {RAW}) in (None, Lack.NO_ARTIFACT, Lack.BROKEN)

    def _remove(self) -> None:
        gone = [one.subject for one in self.report.differences if one.step == "remove"]
        for name in gone:
            if name not in self.store:
                continue
            if self._is_ours(name):
                self.store.free([name])
                self.report.removed.append(name)
            else:
                reason = (
                    "is no longer among the documents, but is another in the store than the last build made"
                )
                self.report.warnings.append(
                    DocumentError(name, reason, "it was left there; kvtool rm removes it")
                )

    def _compress(self, variant: str) -> None:
        names = [name for name in self.sources.documents if name in self.store]
        done = compress(
            self.store,
            names,
            **self.project.by_name[variant].given,
            model=self.model,
            replace=True,
            say=self.watch.say,
            on_calibration=self.watch.calibrate,
            on_progress=self.watch.compress,
        )
        if done.compressed:
            self.report.compressed[variant] = done.compressed
        self.report.problems += done.problems

    def _refuse_changed(self) -> None:
        """A document that was saved while the build ran may have been prefilled as it is now, and not as it was."""
        now = SourceState.of(self.project, self.settings)
        for name in sorted({*now.documents, *self.sources.documents}):
            if now.documents.get(name) != self.sources.documents.get(name):
                reason = "has changed while it was built"
                self.report.problems.append(DocumentError(name, reason, "run kvtool build again"))

    def _verify(self, lock: Lock) -> None:
        """Reads what the last lock did not name, and documents that differed from it."""
        changed = {one.subject for one in self.report.differences}
        before = self.before.documents.items() if self.before else ()
        known = set().union(*(entry.artifacts for name, entry in before if name not in changed))
        for name in lock.documents:
            for variant in self._artifacts(name):
                if variant.artifact in known:
                    continue
                try:
                    self.store.open_artifact(variant).verify()
                except KvtoolError as error:
                    self.report.problems.append(error)
                known.add(variant.artifact)
                self.report.verified += 1

    def _sign(self, lock: Lock) -> None:
        """Signs what the lock says, and nothing that others have put there: a signature says that the gates were passed too."""
        key, variants = signing_key(), {*PREFILLED, *self.project.by_name}
        with self.store.writing():
            for name, entry in lock.documents.items():
                if not entry.segments:
                    continue
                with self.store.changing():
                    document = self.store.stored(name)
                    if LockedDocument.of(entry.source, document, variants) != entry:
                        reason = "has changed in the store while it was built, and was not signed"
                        self.report.problems.append(DocumentError(name, reason, "run kvtool build again"))
                    elif (signed := sign(document, key, variants)) != document:
                        self.store.write_manifest(signed)
                        self.report.signed.append(name)

    def _push(self, lock: Lock, to: str) -> None:
        names = [name for name, entry in lock.documents.items() if entry.segments]
        try:
            done = push(self.store, to, names, replace=True, on_progress=self.watch.push)
        except KvtoolError as error:
            # What was built is in the lock whether or not the network works today.
            self.report.problems.append(error)
            return
        self.report.pushed += done.copied
        self.report.problems += done.problems
        if not done.problems:
            self.report.lock = replace(lock, pushed={to: lock.built})

    def _gates(self, lock: Lock) -> dict[str, PassedGate]:
        """Those that are passed; those that were, on the same artifacts, are not measured again."""
        before = self.before.gates if self.before else {}
        wanted = wanted_gates(self.project, self.sources, lock)
        passed = {name: gate for name, gate in wanted.items() if before.get(name) == gate}
        due = {name: gate for name, gate in wanted.items() if name not in passed}
        if due:
            names = [name for name, entry in lock.documents.items() if entry.segments]
            try:
                self.report.evaluation, checks = evaluate_gates(
                    self.project, self.store, names, list(due), self.model(), self.watch.evaluate
                )
            except KvtoolError as error:
                self.report.problems.append(error)
                return passed
            self.report.checks += checks
            for name, gate in due.items():
                own = [check["passed"] for check in checks if check["candidate"] == name]
                if own and all(own):
                    passed[name] = gate
        return passed
