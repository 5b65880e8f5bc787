"""kvtool build: make a project's store what its documents and its kvtool.toml say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.measurement.eval import write_page
from kvtool.commands.options import AsJson, DryRun, ModelFlags, load_model, with_settings
from kvtool.commands.pipeline.runner import annotate, summarize
from kvtool.commands.prefill import show as show_prefill
from kvtool.counts import counted
from kvtool.errors import DONE, FAILED, GATE

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.pipeline.build import Report, Watch
    from kvtool.pipeline.differences import Difference
    from kvtool.pipeline.estimate import Estimate

NAMED = 20
"""Differences that are named one by one where something is done about them."""


@with_settings(ModelFlags)
def run(
    *,
    settings: Settings,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Do nothing; exit with 4 if kvtool.lock or the store is not what the sources say."
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Build a project's store: prefill, compress, verify and measure, as the table build in kvtool.toml says.

    Only what a change requires is done, by content. kvtool.lock then has every digest. A gate that fails gives exit code 4, and
    is measured again in the next build. kvtool init writes a first kvtool.toml.
    """
    from kvtool.pipeline.differences import differences
    from kvtool.pipeline.lock import read_lock
    from kvtool.pipeline.project import read_project
    from kvtool.pipeline.source_state import SourceState
    from kvtool.store.catalog.local import LocalCatalog

    started = time.monotonic()
    project = read_project(settings)
    lock, sources = read_lock(), SourceState.of(project, settings, download=not check)
    found = differences(project, sources, lock, LocalCatalog(settings.store))
    if check:
        return _check([one for one in found if one.step != "push"], as_json)
    if not found:
        value = {"differences": [], "seconds": round(time.monotonic() - started, 3)}
        n = counted(len(sources.documents), "document")
        output.emit(value, output.Lines(notes=[f"nothing to do: {n} in {settings.store}"]), as_json)
        return DONE
    from kvtool.pipeline.check import check_project

    check_project(project, sources.documents)
    if dry_run:
        from kvtool.pipeline.estimate import estimate

        planned = estimate(project, settings, lock, found, lambda: load_model(settings))
        value = {"differences": [one.to_json() for one in found], "estimate": planned.to_json()}
        output.emit(value, render_plan(found, planned), as_json)
        return output.exit_code(planned.problems, done=0)

    from kvtool.pipeline.build import build
    from kvtool.store.local import LocalStore

    for line in _described(found):
        output.note(line)
    with output.Bars() as bars:
        report = build(
            project,
            settings,
            sources,
            LocalStore(settings.store),
            lock,
            found,
            load_model=lambda: load_model(settings),
            watch=_watch(bars),
        )
    if report.lock:
        report.lock.write()
    if project.report and report.evaluation:
        write_page(project.report, report.evaluation)
    lines = render(report)
    output.emit(report.to_json(), lines, as_json)
    output.print_warnings(report.warnings)
    _tell_runner(report, lines)
    if report.problems:
        for problem in () if as_json else report.problems:
            output.print_error(problem)
        return FAILED
    return DONE if report.has_passed else GATE


def _check(found: Sequence[Difference], as_json: bool) -> int:
    value = {"differences": [one.to_json() for one in found]}
    n = counted(len(found), "thing differs", "things differ")
    summary = f"{n}: run kvtool build" if found else "all is as built"
    output.emit(value, output.Lines(notes=[summary], failures=[str(one) for one in found]), as_json)
    rows = [(one.subject, one.reason) for one in found]
    annotate(f"{subject}: {reason}" for subject, reason in rows)
    summarize(f"kvtool build --check: {summary}", rows, ("what differs", "how"))
    return GATE if found else DONE


def _tell_runner(report: Report, lines: output.Lines) -> None:
    from kvtool.report.table import gate

    annotate(str(problem) for problem in report.problems)
    annotate(gate([check for check in report.checks if not check["passed"]]))
    rows = [(one.subject, one.reason) for one in report.differences]
    summarize(f"kvtool build: {lines.notes[-1] if lines.notes else 'failed'}", rows, ("what differed", "how"))


def _watch(bars: output.Bars) -> Watch:
    from kvtool.pipeline.build import Watch

    return Watch(
        say=output.note,
        prefill=lambda report: show_prefill(bars, report),
        calibrate=output.calibration_progress(bars),
        compress=lambda report: bars.show("compressing").update(
            report.segments_done, report.segments_total, "segments"
        ),
        evaluate=lambda progress: bars.show("evaluating").update(progress.done, progress.total, "tokens"),
        push=lambda report: bars.show("pushing").update(report.nbytes / 1e6, report.nbytes_total / 1e6, "MB"),
    )


def _described(found: Sequence[Difference]) -> list[str]:
    lines = [str(one) for one in found[:NAMED]]
    if len(found) > NAMED:
        lines.append(f"and {len(found) - NAMED} more")
    return lines


def render_plan(found: Sequence[Difference], planned: Estimate) -> output.Lines:
    return output.Lines([str(one) for one in found], planned.lines)


def render(report: Report) -> output.Lines:
    from kvtool.report.table import gate

    done = [f"prefilled {counted(len(report.prefilled), 'document')}"] if report.prefilled else []
    done += [f"removed {counted(len(report.removed), 'document')}"] if report.removed else []
    done += [
        f"{variant}: compressed {counted(len(names), 'document')}"
        for variant, names in report.compressed.items()
    ]
    done += [f"verified {counted(report.verified, 'artifact')}"] if report.verified else []
    done += [f"signed {counted(len(report.signed), 'document')}"] if report.signed else []
    done += [f"pushed {counted(len(report.pushed), 'document')}"] if report.pushed else []
    failed, passed = ([one for one in report.checks if one["passed"] is kept] for kept in (False, True))
    notes = gate(passed)
    if report.lock:
        notes.append(f"{'; '.join(done) or 'nothing was to be done'} in {report.seconds:.1f} s → kvtool.lock")
    elif done:
        notes.append(f"{'; '.join(done)}; kvtool.lock was left as it was")
    return output.Lines(notes=notes, failures=gate(failed))
