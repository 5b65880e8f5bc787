"""kvtool calibrate: documents → what a recipe learns about a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from kvtool.commands import common

if TYPE_CHECKING:
    from kvtool.errors import KvtoolError


def run(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Documents (default: all).", metavar="[NAME…]")
    ] = None,
    text: Annotated[
        Optional[list[str]],
        typer.Option(
            "--text",
            help="Files, folders or patterns to use instead of documents; repeatable.",
            metavar="PATH",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Whose; kvtool recipes says which take one.")
    ] = "klt",
    tokens: Annotated[int, typer.Option("--tokens", help="How many to learn from.", metavar="N")] = 16384,
    seed: Annotated[int, typer.Option("--seed", help="Another one draws other pieces of the documents.")] = 0,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    as_json: common.JsonOption = False,
) -> int:
    """Make a calibration: what a recipe learns about a model, once, for all documents.

    The model runs over a sample of the store's documents, or of other text. kvtool compress takes the newest
    calibration that fits.
    """
    from kvtool.calibration.calibrate import Report, calibrate, calibrated_recipe
    from kvtool.config import settings
    from kvtool.store.local import Store

    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    opened = Store(chosen.store)
    calibrated_recipe(recipe)
    texts, problems = _texts(text) if text else (None, [])
    loaded = common.load_model(chosen)
    started = time.monotonic()
    with common.Bar("calibrating") as bar:
        made = calibrate(
            opened,
            names or None,
            model=loaded,
            recipe=recipe,
            tokens=tokens,
            texts=texts,
            seed=seed,
            on_progress=common.calibrated(bar),
        )
    seconds = time.monotonic() - started
    report = Report(made, opened, loaded, seconds, problems)
    if as_json:
        common.print_json(report.to_json())
    else:
        typer.echo(made.digest)
        common.say(
            f"{made.method}: calibrated {loaded.name} from {report.source['tokens']:,} tokens of "
            f"{report.source['documents']} documents in {seconds:.1f} s; {common.size(made.nbytes)} → {chosen.store}"
        )
    return common.problems(problems, 1)


def _texts(paths: list[str]) -> tuple[list[str], list[KvtoolError]]:
    """What can be read of ``paths``, and what cannot. Raises if nothing can."""
    from kvtool.documents.find import find
    from kvtool.documents.read import read_text
    from kvtool.errors import DocumentError, UsageError

    found, missing = find(paths)
    problems: list[KvtoolError] = list(missing)
    texts = []
    for document in found:
        try:
            texts.append(read_text(document.path))
        except DocumentError as error:
            problems.append(error)
    if not texts:
        raise problems[0] if problems else UsageError("--text", "names no files")
    return texts, problems
