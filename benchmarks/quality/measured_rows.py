"""Rows → an evaluation. A row that fails is left out and named, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.peers.candidate import PeerCandidate
from benchmarks.peers.client import Peer, PeerError
from benchmarks.peers.environments import script
from benchmarks.quality.compared import Row, peers
from kvtool.calibration.lookup import FindCalibration
from kvtool.compression.pipeline_options import parameters_of
from kvtool.digest import Json
from kvtool.errors import first_line
from kvtool.evaluation.candidates import Candidate, Coded, Kind, Raw, Restored, candidate
from kvtool.evaluation.evaluation import run_plan
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.plan import Plan
from kvtool.evaluation.run import OnProgress, Runner
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context
from kvtool.measurement.scope import Scope
from kvtool.store.segments import SegmentRef


class RowError(kvtool.KvtoolError):
    """The candidate ``name`` failed. As any error of kvtool's, on a few tokens: then it is tried on more."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name, first_line(error))
        self.name = name


@dataclass(frozen=True)
class Watched:
    """A candidate whose failures bear its name."""

    name: str
    kind: Kind
    family: str
    summary: str
    paper: str
    identity: Json
    variant: str | None
    restores: Callable[[Bench], Restored]

    def restore(self, bench: Bench) -> Restored:
        try:
            return self.restores(bench)
        except Exception as error:
            raise RowError(self.name, error) from error


@dataclass(frozen=True)
class Compared:
    """Candidates by their rows' names, and why others could not be made."""

    candidates: dict[str, Candidate]
    failed: dict[str, str]

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        find: FindCalibration,
        find_own: FindCalibration,
        stack: ExitStack,
        environments: Path,
    ) -> Compared:
        """``find`` gives recipes their calibrations, ``find_own`` those of the store's own documents."""
        made: dict[str, Candidate] = {}
        failed: dict[str, str] = {}
        for row in rows:
            if not row.method.peer:
                try:
                    coded = candidate(row.setting, find_own if row.own else find)
                    made[row.name] = replace(coded, name=row.name)
                except kvtool.KvtoolError as error:
                    failed[row.name] = str(error)
        for tool, some in peers(rows).items():
            try:
                peer = _started(stack, environments, tool)
                made |= {row.name: _of_peer(peer, row) for row in some}
            except PeerError as error:
                failed |= {row.name: str(error).splitlines()[0] for row in some}
        return cls({row.name: made[row.name] for row in rows if row.name in made}, failed)

    def calibrations(self) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        """Of each candidate the bytes, tokens and documents of its calibrations; None for one without."""
        for name, one in self.candidates.items():
            made = one.pipeline.calibrations if isinstance(one, Coded) else ()
            sources: list[Any] = [calibration.facts["source"] for calibration in made]
            yield (
                name,
                {
                    "nbytes": sum(calibration.nbytes for calibration in made),
                    "tokens": sum(source["tokens"] for source in sources),
                    "documents": sum(source["documents"] for source in sources),
                }
                if made
                else None,
            )


def measure(
    runner: Runner,
    compared: Compared,
    segments: list[SegmentRef],
    contexts: list[Context],
    scope: Scope,
    command: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The evaluation as JSON. What failed is added to ``compared.failed``.

    What was measured is kept, so that a run that was interrupted, or that begins again without a failed row, goes on.
    """
    while True:
        others = [one for name, one in compared.candidates.items() if name not in compared.failed]
        if not others:
            raise kvtool.KvtoolError(
                "no row", f"could be measured: {compared.failed}", "choose others with --rows"
            )
        chosen = replace(runner, candidates=[Raw(), *map(_watched, others)])
        try:
            plan = Plan(chosen, scope, segments, contexts, [], Gate())
            return run_plan(plan, command=command, on_progress=on_progress).json
        except kvtool.KvtoolError as error:
            # One that was refused when it was tried is the cause of what says so.
            row = error if isinstance(error, RowError) else error.__cause__
            if not isinstance(row, RowError):
                raise
            print(f"left out: {row}", flush=True)
            compared.failed[row.name] = row.reason


def _watched(one: Candidate) -> Watched:
    return Watched(
        one.name, one.kind, one.family, one.summary, one.paper, one.identity, one.variant, one.restore
    )


def _started(stack: ExitStack, environments: Path, name: str) -> Peer:
    python = environments / name / "bin" / "python"
    if not python.exists():
        raise PeerError(f"{name} has no environment; `make peers` makes it")
    return stack.enter_context(Peer(python, script(name)))


def _of_peer(peer: Peer, row: Row) -> PeerCandidate:
    method, *options = row.setting.split(":")
    return PeerCandidate(row.name, peer, method, parameters_of(options, row.name, "bits=4"))
