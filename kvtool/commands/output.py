"""Output of commands: data on stdout, notes, progress and errors on stderr; and their exit codes."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from kvtool.errors import DONE, FAILED, INTERRUPTED, PARTLY, KvtoolError

if TYPE_CHECKING:
    from kvtool.calibration.learning import Progress as CalibrateProgress

debug = False
"""Whether errors are printed with their tracebacks, as ``kvtool --debug`` asks."""

quiet = False
"""Whether notes and progress are left out, as ``--quiet`` of a command asks."""


@dataclass(frozen=True)
class Lines:
    """A report for people: ``data`` goes to stdout, ``notes`` to stderr, and so do ``failures``, which --quiet prints too."""

    data: Sequence[str] = ()
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()


def emit(value: object, lines: Lines, as_json: bool) -> None:
    """Prints a report: ``value`` as JSON to stdout, or its ``lines``."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for line in lines.data:
        typer.echo(escaped(line))
    for line in lines.notes:
        note(line)
    for line in lines.failures:
        alert(line)


def note(line: str) -> None:
    """Prints one line for people, to stderr, since stdout is for data; not where they asked for quiet."""
    if not quiet:
        alert(line)


def alert(line: str) -> None:
    """Prints one line to stderr that nobody should miss: errors, warnings, and checks that failed."""
    typer.echo(escaped(line), err=True)


def escaped(line: str) -> str:
    """``line`` with what a terminal would not show, or would obey, written as in Python: newlines, bidi controls."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def print_error(error: object) -> None:
    alert(f"error: {' '.join(str(error).split())}")


def print_warnings(warnings: Iterable[KvtoolError]) -> None:
    """Prints what was done, but may not be what is wanted."""
    for warning in warnings:
        alert(f"warning: {' '.join(str(warning).split())}")


def exit_code(problems: Iterable[KvtoolError], done: int) -> int:
    """Prints what could not be done. Returns the exit code of a run that did ``done`` other things."""
    failed = list(problems)
    for error in failed:
        print_error(error)
    return DONE if not failed else PARTLY if done else FAILED


def guarded(function: Callable[..., int | None], name: str) -> Callable[..., None]:
    """``function`` as the command ``name``: its errors become one line each, its result the exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        logging.getLogger("kvtool").setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            code = function(*args, **kwargs)
        except KvtoolError as error:
            print_traceback()
            print_error(error)
            code = error.exit_code
        except KeyboardInterrupt:
            alert("interrupted; what was finished is stored, the same command goes on from there")
            code = INTERRUPTED
        except BrokenPipeError:
            # The reader of our output went away; nobody is left to tell.
            sys.stderr.close()
            code = FAILED
        except Exception as error:
            print_traceback()
            if isinstance(error, OSError) and error.filename:
                # The system refused a path: the user can do something about that.
                print_error(KvtoolError(error.filename, error.strerror, "check the path and its permissions"))
            else:
                hint = "" if debug else "; run with kvtool --debug for a traceback"
                alert(f"kvtool: {type(error).__name__}: {error}. This is not expected{hint}")
            code = FAILED
        raise typer.Exit(code or DONE)

    run.__name__ = name
    return run


def print_traceback() -> None:
    """Prints where the error that is being handled comes from, if ``--debug`` asks for that."""
    if debug:
        typer.echo(traceback.format_exc().rstrip(), err=True)


def size(nbytes: float) -> str:
    """A number of bytes in words, such as "1.2 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns that are aligned to the left, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


class Bar:
    """A progress bar on a terminal; otherwise a line every ten seconds. Nothing where people asked for quiet."""

    EVERY = 10.0

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.label, self.started = label, time.monotonic()
        self.last = self.started
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal and not quiet:
            label_column, rate_column = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
            columns = label_column, BarColumn(), rate_column, TimeRemainingColumn()
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(label, total=None, rate="")

    def __enter__(self) -> Bar:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: float, total: float, unit: str) -> None:
        """Shows any progress: late, none yet, backwards, past the end, of nothing."""
        now = time.monotonic()
        rate = max(done, 0) / max(now - self.started, 1e-9)
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")
        elif now - self.last >= self.EVERY and done < total:
            self.last = now
            # So slow a rate is 0 in floating point, and the time left would have no end.
            pace = (
                f", {rate:,.{0 if rate >= 10 else 1}f} a second, {(total - done) / rate:,.0f} s left"
                if rate > 1e-9
                else ""
            )
            note(f"{self.label}: {max(done, 0):,.0f} of {total:,.0f} {unit}{pace}")


class Bars:
    """Bars that follow one another; each is made when there is something to show."""

    def __init__(self) -> None:
        self.label, self.stack = "", ExitStack()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def show(self, label: str) -> Bar:
        if label != self.label:
            self.stack.close()
            self.label, self.bar = label, self.stack.enter_context(Bar(label))
        return self.bar


def calibration_progress(bars: Bars) -> Callable[[CalibrateProgress], None]:
    """Shows a bar for each phase: the model runs, the recipe learns from that, and its presets are measured."""
    said: list[int] = []

    def show(progress: CalibrateProgress) -> None:
        if progress.settings_total:
            if not progress.settings:
                note("measuring what the presets cost, on text that was held back")
            bar = bars.show("calibrating: measuring presets")
            bar.update(progress.settings, progress.settings_total, "settings")
        elif progress.steps_total:
            bars.show("calibrating: learning").update(progress.steps, progress.steps_total, "steps")
        else:
            if progress.nbytes and not said:
                said.append(progress.nbytes)
                note(f"calibrating takes up to {size(progress.nbytes)} of memory beside the model")
            bars.show("calibrating").update(progress.tokens, progress.tokens_total, "tokens")
            if progress.tokens == progress.tokens_total:
                note(f"the model has run, {progress.seconds:.0f} s; fitting the calibration to what it gave")

    return show
