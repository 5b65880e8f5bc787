"""kvtool calibrate: fit a recipe to a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, ModelFlags, load_model, with_settings
from kvtool.errors import DocumentError, KvtoolError, UsageError

if TYPE_CHECKING:
    from kvtool.calibration.calibrate import Report
    from kvtool.config import Settings


@with_settings(ModelFlags)
def run(
    names: DocumentNames = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Take these files, folders or glob patterns instead of documents; repeatable.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Calibrate this recipe; kvtool recipes says which take a calibration.")
    ] = "klt",
    tokens: Annotated[int, typer.Option(metavar="N", help="Take about this many tokens.")] = 16384,
    seed: Annotated[int, typer.Option(help="Draw other parts of the documents for another seed.")] = 0,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> int:
    """Make a calibration: what a recipe learns about a model, once, for all documents.

    The model runs over a sample of the store's documents, or of other text. kvtool compress takes the newest
    calibration that fits.
    """
    from kvtool.calibration.calibrate import Report, calibrate, calibrated_recipe
    from kvtool.store.open import open_store

    store = open_store(settings.store, existing=not text)
    # Raises for a recipe without a calibration, before the model is loaded.
    calibrated_recipe(recipe)
    texts, problems = _read_texts(text) if text else (None, [])
    model = load_model(settings)
    started = time.monotonic()
    with output.Bar("calibrating") as bar:
        calibration = calibrate(
            store,
            names or None,
            model=model,
            recipe=recipe,
            tokens=tokens,
            texts=texts,
            seed=seed,
            on_progress=output.calibration_progress(bar),
        )
    file = str(store.locate_calibration(calibration.digest))
    report = Report(calibration, file, model, time.monotonic() - started, problems)
    output.emit(report.to_json(), render(report), as_json)
    return output.exit_code(problems, done=1)


def _read_texts(paths: Sequence[str]) -> tuple[list[str], list[KvtoolError]]:
    """The texts of ``paths``, and what cannot be read. Raises KvtoolError if nothing can."""
    from kvtool.documents.find import find
    from kvtool.documents.read import read_text

    documents, missing = find(paths)
    problems: list[KvtoolError] = list(missing)
    texts = []
    for document in documents:
        try:
            texts.append(read_text(document.path))
        except DocumentError as error:
            problems.append(error)
    if not texts:
        raise problems[0] if problems else UsageError("--text", "names no files")
    return texts, problems


def render(report: Report) -> output.Lines:
    calibration, source = report.calibration, report.source
    summary = (
        f"{calibration.method}: calibrated {report.model.name} from {source['tokens']:,} tokens of "
        f"{source['documents']} documents in {report.seconds:.1f} s; {output.size(calibration.nbytes)} → {report.file}"
    )
    return output.Lines([calibration.digest], [summary])
