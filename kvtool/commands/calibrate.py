"""kvtool calibrate: fit a recipe to a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_recipe
from kvtool.commands.options import AsJson, DocumentNames, DryRun, TextFlags, load_model, with_settings
from kvtool.commands.recipes import preset_lines
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.calibration.calibrate import Plan, Report
    from kvtool.codecs import Recipe
    from kvtool.config import Settings
    from kvtool.documents.load import Account


@with_settings(TextFlags)
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
        str,
        typer.Option(
            help="Calibrate this recipe; kvtool recipes says which take a calibration.",
            autocompletion=complete_recipe,
        ),
    ] = "klt",
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Take about this many tokens; default: 16,384, more for large models."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draw other parts of the documents for another seed.")] = 0,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Make a calibration: what a recipe learns about a model, once, for all documents.

    The model runs over a sample of the store's documents, and of texts that come with kvtool where these are too few, or of other
    text. kvtool compress takes the newest
    calibration that fits. For a recipe with presets, the settings that keep their promises on this model are found then.
    """
    from kvtool.calibration.calibrate import Report, calibrate, calibrated_recipe, plan_calibration
    from kvtool.documents.load import Account
    from kvtool.store.open import open_store

    store = open_store(settings.store, existing=not text)
    # Raises for a recipe without a calibration, before the model is loaded.
    chosen = calibrated_recipe(recipe)
    account = Account()
    texts = _read_texts(text, account, settings.encoding) if text else None
    model = load_model(settings)
    chosen_text: dict[str, Any] = {"recipe": recipe, "tokens": tokens, "texts": texts, "seed": seed}
    if dry_run:
        planned = plan_calibration(store, names or None, model=model, **chosen_text)
        output.emit(planned.to_json(), render_plan(planned), as_json)
        return output.exit_code(account.problems, done=1)
    started = time.monotonic()
    with output.Bars() as bars:
        calibration = calibrate(
            store,
            names or None,
            model=model,
            **chosen_text,
            on_progress=output.calibration_progress(bars),
        )
    file = str(store.locate_calibration(calibration.digest))
    report = Report(calibration, file, model, time.monotonic() - started, account.problems, account.warnings)
    output.emit(report.to_json(), render(report, chosen), as_json)
    output.print_warnings(report.warnings)
    return output.exit_code(report.problems, done=1)


def _read_texts(paths: Sequence[str], account: Account, encoding: str | None) -> list[str]:
    """The texts of ``paths``; ``account`` gets the rest. Raises KvtoolError if nothing can."""
    from kvtool.documents.load import load

    texts = [document.text for document in load(paths, account, encoding=encoding)]
    if not texts:
        raise account.problems[0]
    return texts


def render_plan(plan: Plan) -> output.Lines:
    line = (
        f"{plan.recipe.name}: would calibrate {plan.model.name} from {counted(plan.tokens, 'token')} of "
        f"{counted(plan.documents, 'document')}"
    )
    about = "" if plan.seconds is None else f", about {max(1, round(plan.seconds))} s"
    return output.Lines(notes=[line + about])


def render(report: Report, recipe: Recipe) -> output.Lines:
    calibration, source = report.calibration, report.source
    sampled = (
        f", {source['sampled']:,} of them of texts that come with kvtool," if "sampled" in source else ""
    )
    summary = (
        f"{calibration.method}: calibrated {report.model.name} from {counted(source['tokens'], 'token')} of "
        f"{counted(source['documents'], 'document')}{sampled} in {report.seconds:.1f} s; {output.size(calibration.nbytes)} → "
        f"{report.file}"
    )
    presets = ["presets on this model:", *preset_lines(recipe, calibration)] if recipe.dial else []
    return output.Lines([calibration.digest], [summary, *presets])
