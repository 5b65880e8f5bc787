"""kvtool bench: from how many tokens and how many uses on a cache pays on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_recipes
from kvtool.commands.measurement import report_file
from kvtool.commands.options import AsJson, TextFlags, given, load_model, numbers, split, with_settings
from kvtool.errors import DONE, UsageError

if TYPE_CHECKING:
    from kvtool.breakeven.plan import Plan
    from kvtool.config import Settings


@with_settings(TextFlags)
def run(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH…]",
            help="Measure with the text of these files or folders (default: texts that come with kvtool).",
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Count the transfer of each file over a link of this rate, as 100Mbit, 1Gbit or 50MB (default: none, the "
            "files are on this machine).",
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,…",
            help="Measure texts of these lengths in tokens (default: those of 256,1024,4096 that the model takes).",
        ),
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R1,R2,…",
            autocompletion=complete_recipes,
            help="Measure these beside the raw cache: RECIPE or RECIPE:PARAMETER=VALUE:…, separated by commas (default: klt, "
            "if there is a calibration for the model).",
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Take the shortest times of this many rounds, fewer where they take long (default: 3)."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw it, as SVG, into this file.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file of --picture.")] = False,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> int:
    """Measure from how many tokens and how many uses on a cache pays, for this machine, model and link.

    Texts of some lengths are prefilled, written, encoded and loaded here. A use saves the prefill, and costs transfer and
    load; what was spent once is paid back after so many uses. No document is needed, and nothing in the store is changed.
    """
    from kvtool.breakeven.link import parse_link
    from kvtool.breakeven.measure import measure
    from kvtool.breakeven.plan import plan
    from kvtool.breakeven.result import result
    from kvtool.report.breakeven import explanation, lines
    from kvtool.store.open import open_store

    lengths = numbers("--tokens", tokens, "256,1024,4096")
    over = None if link is None else parse_link(link)
    if picture is not None:
        _check_picture(picture, replace)
    texts = _texts(paths, settings.encoding) if paths else ()
    store = open_store(settings.store)
    planned = plan(
        load_model(settings), store, split(recipes), lengths, texts, over, **given(repeats=repeats)
    )
    for line in (_summary(planned), *planned.notes):
        output.note(line)
    known = len(planned.notes)
    with output.Bar("measuring") as bar:
        measured = measure(planned, lambda done, total: bar.update(done, total, "tokens"))
    made = result(planned, measured)
    for line in planned.notes[known:]:
        output.note(line)
    output.emit(made, output.Lines(lines(made), ["", *explanation(made)]), as_json)
    if picture is not None:
        _draw(picture, made)
    return DONE


def _texts(paths: list[str], encoding: str | None) -> list[str]:
    """The texts of all documents. Raises the first problem: a wrong path must not be measured as something else."""
    from kvtool.documents.load import Account, load

    account = Account()
    texts = [loaded.text for loaded in load(paths, account, encoding=encoding)]
    if account.problems:
        raise account.problems[0]
    output.print_warnings(account.warnings)
    return texts


def _summary(plan: Plan) -> str:
    names = ", ".join(variant.name for variant in plan.variants)
    lengths = ", ".join(f"{length:,}" for length in plan.lengths)
    return f"measuring {names} at {lengths} tokens with {plan.model.name}"


def _check_picture(path: Path, replace: bool) -> None:
    from kvtool.report.plots import require

    require()
    if path.suffix.lower() != ".svg":
        raise UsageError(f"--picture {path}", "pictures are SVG", "give a name that ends with .svg")
    report_file.check("--picture", path, replace)


def _draw(path: Path, result: dict[str, Any]) -> None:
    from kvtool.report.plots.breakeven import breakeven
    from kvtool.report.plots.standalone import document
    from kvtool.report.text import cleaned
    from kvtool.system.files import write_atomic

    write_atomic(path, [document(breakeven(cleaned(result))).encode()])
    output.note(f"picture: {path}")
