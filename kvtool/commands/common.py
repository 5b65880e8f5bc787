"""What the verbs share: options, how errors and progress are shown."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kvtool.errors import DONE, FAILED, INTERRUPTED, PARTLY, KvtoolError

if TYPE_CHECKING:
    from kvtool.calibration.calibrate import Progress as CalibrateProgress
    from kvtool.config import Settings
    from kvtool.model.model import Model

debug = False

StoreOption = Annotated[
    Optional[Path],
    typer.Option(
        "--store",
        help="The store's directory; to read only, a server's http://HOST:PORT or a bucket's s3://BUCKET/PREFIX "
        "(default: kv-store).",
    ),
]
ModelOption = Annotated[
    Optional[str],
    typer.Option(
        "--model", help="A directory, a .gguf file, a hub id (owner/name@revision) (default: embedded)."
    ),
]
DeviceOption = Annotated[
    Optional[str], typer.Option("--device", help="auto, cpu, cuda, cuda:N (default: auto).")
]
DtypeOption = Annotated[
    Optional[str],
    typer.Option("--dtype", help="auto, float32, bfloat16, float16 (default: auto: float32 on a CPU)."),
]
LoadInOption = Annotated[
    Optional[str], typer.Option("--load-in", help="Load the weights in 4bit or 8bit, through bitsandbytes.")
]
AdapterOption = Annotated[Optional[Path], typer.Option("--adapter", help="A PEFT adapter's directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def guarded(function: Callable[..., int | None], name: str) -> Callable[..., None]:
    """``function`` with its errors shown as one line each, and its result as the exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        logging.getLogger("kvtool").setLevel(logging.INFO)
        try:
            code = function(*args, **kwargs)
        except KvtoolError as error:
            if debug:
                raise
            say_error(error)
            code = error.exit_code
        except KeyboardInterrupt:
            say("interrupted; what was finished is stored, the same command goes on from there")
            code = INTERRUPTED
        except BrokenPipeError:
            # The reader of our output went away; nobody is left to tell.
            sys.stderr.close()
            code = FAILED
        except Exception as error:
            if debug:
                raise
            say(
                f"kvtool: {type(error).__name__}: {error}. This is not expected; run with kvtool --debug for a traceback"
            )
            code = FAILED
        raise typer.Exit(code or DONE)

    run.__name__ = name
    return run


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("kvtool"))
        raise typer.Exit


def say(line: str) -> None:
    """One line to people: on stderr, since stdout is for data."""
    typer.echo(line, err=True)


def say_error(error: KvtoolError) -> None:
    say(f"error: {' '.join(str(error).split())}")


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def problems(errors: Iterable[KvtoolError], done: int) -> int:
    """Shows what could not be done; the exit code of a run of which ``done`` things were."""
    failed = list(errors)
    for error in failed:
        say_error(error)
    return DONE if not failed else PARTLY if done else FAILED


def load_model(chosen: Settings) -> Model:
    from kvtool.model.model import load_model as load

    return load(
        chosen.model, device=chosen.device, dtype=chosen.dtype, load_in=chosen.load_in, adapter=chosen.adapter
    )


def size(nbytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


class Bar:
    """A progress bar on a terminal; elsewhere a plain line now and then."""

    EVERY = 10.0

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.what, self.started = what, time.monotonic()
        self.last = self.started
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(what, total=None, rate="")

    def __enter__(self) -> Bar:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: float, total: float, unit: str) -> None:
        now = time.monotonic()
        rate = done / max(now - self.started, 1e-9)
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")
        elif now - self.last >= self.EVERY and done < total:
            self.last = now
            say(
                f"{self.what}: {done:,.0f} of {total:,.0f} {unit}, {rate:,.0f} a second, {(total - done) / rate:,.0f} s left"
            )


def calibrated(bar: Bar) -> Callable[[CalibrateProgress], None]:
    """What shows a calibration's progress: the model's part, and that there is another behind it."""

    def show(progress: CalibrateProgress) -> None:
        bar.update(progress.tokens, progress.tokens_total, "tokens")
        if progress.tokens == progress.tokens_total:
            say(f"the model has run, {progress.seconds:.0f} s; learning from what it gave")

    return show
