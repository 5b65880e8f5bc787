"""Flags that several commands share, and the settings that they give.

A command declares a keyword-only parameter ``settings`` and says with ``with_settings`` which flags it is made from.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_documents
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.model.model import Model

Result = TypeVar("Result")


DocumentNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME…]", help="Take these documents (default: all).", autocompletion=complete_documents
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, without changing anything.")
]

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print data, warnings and errors alone: no notes, no progress.")
]

Seed = Annotated[int | None, typer.Option(help="Draw segments and needles by this seed (default: 0).")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Repeat what an earlier run has measured.")]

_MEASURED = {
    "documents": "Measure on at most this many segments, drawn if there are more",
    "context": "Cache at most this many tokens of each",
    "haystacks": "Build this many haystacks of each kind and length",
}


def measured(what: str, default: int) -> Any:
    """An option of commands that measure on segments and haystacks, where each has its own ``default``."""
    return typer.Option(help=f"{_MEASURED[what]} (default: {default}).")


class StoreFlags:
    """For a command that reads or changes a store. Each field is one of ``Settings``."""

    store: Annotated[
        Path | None,
        typer.Option(
            help="Use the store in this directory or, to read only, at a server's http://HOST:PORT or a bucket's "
            "s3://BUCKET/PREFIX (default: kv-store)."
        ),
    ]


class ModelFlags(StoreFlags):
    """For a command that runs a model too."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Use this model: a directory, a .gguf file or a hub id, owner/name@revision (default: embedded)."
        ),
    ]
    device: Annotated[
        str | None, typer.Option(help="Run on this device: auto, cpu, cuda or cuda:N (default: auto).")
    ]
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Compute in this dtype: auto, float32, bfloat16 or float16 (default: auto, on a CPU float32)."
        ),
    ]
    load_in: Annotated[
        str | None, typer.Option(help="Load the weights in 4bit or 8bit, through bitsandbytes.")
    ]
    adapter: Annotated[Path | None, typer.Option(help="Apply the PEFT adapter in this directory.")]


class TextFlags(ModelFlags):
    """For a command that runs a model over files."""

    encoding: Annotated[
        str | None,
        typer.Option(
            help="Read text and HTML files in this encoding, such as cp1250 (default: what each declares, else UTF-8, else a "
            "guess, which is named in a warning)."
        ),
    ]


def with_settings(flags: type[StoreFlags]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorates a command: its parameter ``settings`` becomes one parameter for each of ``flags``.

    Called with these, in Python too, the command gets the ``Settings`` that they give over environment and files.
    """
    annotations = get_type_hints(flags, include_extras=True)

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Result:
            from kvtool.config import settings

            flags = {name: kwargs.pop(name, None) for name in annotations}
            return command(*args, settings=settings(**flags), **kwargs)

        # Typer reads both. Commands import Settings for type checkers only, so its name is resolved to anything here.
        hints = get_type_hints(command, localns={"Settings": object}, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if name == "settings":
                parameters += [
                    inspect.Parameter(flag, parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                    for flag, annotation in annotations.items()
                ]
            else:
                parameters.append(parameter.replace(annotation=hints[name]))
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def with_quiet(command: Callable[..., Result]) -> Callable[..., Result]:
    """Gives a command the flag ``--quiet``, which it need not know of."""
    hints = get_type_hints(command, localns={"Settings": object}, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
    ]

    @functools.wraps(command)
    def run(*args: Any, quiet: bool = False, **kwargs: Any) -> Result:
        output.quiet = quiet
        if quiet:
            # Read when huggingface_hub is first imported, which is later: its downloads have bars of their own.
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        return command(*args, **kwargs)

    flag = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    run.__annotations__ = {**{one.name: one.annotation for one in parameters}, "quiet": Quiet}
    run.__signature__ = inspect.Signature([*parameters, flag])  # type: ignore[attr-defined]
    return run


def load_model(settings: Settings) -> Model:
    """The model that the settings name."""
    from kvtool.model.model import load_model as load

    s = settings
    return load(s.model, device=s.device, dtype=s.dtype, load_in=s.load_in, adapter=s.adapter)


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given on the command line, for calls that have defaults of their own."""
    return {name: value for name, value in flags.items() if value is not None}


def print_version(wanted: bool) -> None:
    if wanted:
        import kvtool

        typer.echo(kvtool.__version__)
        raise typer.Exit


def split(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """The parts of a repeatable option whose values are lists with commas; None where it is not given."""
    if texts is None:
        return None
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def numbers(option: str, texts: Sequence[str] | None, example: str) -> tuple[int, ...] | None:
    """The whole numbers of an option whose values are lists with commas; None where it is not given."""
    parts = split(texts)
    if parts is None:
        return None
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise UsageError(
                f"{option} {part}", "is no number of tokens", f"expected numbers as in {example}"
            )
    return tuple(map(int, parts))
