"""A project's documents → its store: prefill, remove, compress, verify, gates, and then the lock. Only what differs is done."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.calibration.learning import OnProgress
from kvtool.compression.compress import compress
from kvtool.compression.report import Report as CompressReport
from kvtool.config import Settings
from kvtool.digest import Json
from kvtool.errors import DocumentError, KvtoolError
from kvtool.evaluation.run import Progress as Evaluating
from kvtool.model.model import Model
from kvtool.model.prefill_speed import remember
from kvtool.pipeline.differences import Difference, gate_subject
from kvtool.pipeline.gates import evaluate_gates
from kvtool.pipeline.lock import Lock
from kvtool.pipeline.project import Project
from kvtool.pipeline.source_state import SourceState
from kvtool.prefilling.inputs import prefill_options
from kvtool.prefilling.prefill import prefill
from kvtool.prefilling.report import Report as PrefillReport
from kvtool.store.local import LocalStore
from kvtool.store.transfer.push import push
from kvtool.store.transfer.transfer import Report as PushReport


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
    """What a build did. ``verified`` artifacts were read whole; ``checks`` are those of gates, ``evaluation`` what they are on.

    ``problems`` keep it from going on: there is no new lock then, unless it is only that not all was ``pushed``. What was made
    until then stays in the store.
    """

    differences: Sequence[Difference]
    prefilled: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    compressed: dict[str, list[str]] = field(default_factory=dict)
    verified: int = 0
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
    """Makes ``store`` what ``sources`` say, and returns with a lock of that unless there were problems.

    ``differences`` say what to do; those of ``lock``. The model is loaded if a step runs it. Documents that were built and are
    no sources any more are removed; others that the store has are left alone.
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
        if self._is_due("prefill"):
            self._prefill()
        if self.report.problems:
            return
        self._remove()
        for name in self.project.by_name:
            self._compress(name)
            if self.report.problems:
                return
        lock = Lock.of(self.project, self.sources, self.store)
        self._verify(lock)
        if self.report.problems:
            return
        self.report.lock = lock.with_gates(self._gates(lock))
        if self.project.push and self.report.has_passed:
            self._push(self.report.lock, self.project.push)

    def _is_due(self, step: str, variant: str | None = None) -> bool:
        return any(one.step == step and one.variant == variant for one in self.report.differences)

    def _discard_cut(self) -> None:
        """Removes files that are shorter than their artifacts, which would be taken for them."""
        for name in {one.subject for one in self.report.differences}:
            document = self.store.get(name)
            for variant in document.artifacts if document else ():
                if self.store.holds(variant) and not self.store.holds_whole(variant):
                    self.store.discard(variant)

    def _prefill(self) -> None:
        options, warnings = prefill_options(self.settings)
        model = self.model()
        done = prefill(
            self.project.documents,
            model=model,
            store=self.store,
            replace=True,
            on_progress=self.watch.prefill,
            **options,
        )
        if done.model_tokens:
            remember(model.fingerprint, done.model_tokens, done.model_seconds)
        self.report.prefilled += done.prefilled
        self.report.problems += done.problems
        self.report.warnings += [*warnings, *done.warnings]

    def _remove(self) -> None:
        gone = [one.subject for one in self.report.differences if one.step == "remove"]
        held = [name for name in gone if name in self.store]
        if held:
            self.store.free(held)
        self.report.removed += held

    def _compress(self, variant: str) -> None:
        names = [name for name in self.sources.documents if name in self.store]
        missing = [
            name
            for name in names
            if any(variant not in segment.variants for segment in self.store[name].segments)
        ]
        if not (missing or self._is_due("compress", variant)):
            return
        wanted = self.project.by_name[variant]
        done = compress(
            self.store,
            names,
            **wanted.given,
            model=self.model,
            replace=True,
            say=self.watch.say,
            on_calibration=self.watch.calibrate,
            on_progress=self.watch.compress,
        )
        if done.compressed:
            self.report.compressed[variant] = done.compressed
        self.report.problems += done.problems

    def _verify(self, lock: Lock) -> None:
        """Reads what the last lock did not name, and documents that differed from it."""
        changed = {one.subject for one in self.report.differences}
        before = self.before.documents.items() if self.before else ()
        known = set().union(*(entry.artifacts for name, entry in before if name not in changed))
        for name in lock.documents:
            document = self.store.get(name)
            for variant in document.artifacts if document else ():
                if variant.artifact in known:
                    continue
                try:
                    self.store.open_artifact(variant).verify()
                except KvtoolError as error:
                    self.report.problems.append(error)
                known.add(variant.artifact)
                self.report.verified += 1

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

    def _gates(self, lock: Lock) -> dict[str, Mapping[str, Json]]:
        """Those that are passed; those that were, on the same artifacts, are not measured again."""
        passed: dict[str, Mapping[str, Json]] = {}
        due: list[str] = []
        for name, wanted in self.project.by_name.items():
            if not (limits := wanted.gate.given):
                continue
            gate = {"limits": limits, "of": gate_subject(self.project, lock, name)}
            if self.before and self.before.gates.get(name) == gate:
                passed[name] = gate
            else:
                due.append(name)
                passed[name] = gate
        if due:
            names = [name for name, entry in lock.documents.items() if entry.segments]
            self.report.evaluation, checks = evaluate_gates(
                self.project, self.store, names, due, self.model(), self.watch.evaluate
            )
            self.report.checks += checks
            for check in checks:
                if not check["passed"]:
                    passed.pop(check["candidate"], None)
        return passed
