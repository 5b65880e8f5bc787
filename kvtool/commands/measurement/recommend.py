"""kvtool recommend: say which recipe to take, by what each costs on the user's own documents."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_recipes
from kvtool.commands.measurement.eval import render_plan
from kvtool.commands.options import (
    AsJson,
    DocumentNames,
    DryRun,
    Fresh,
    ModelFlags,
    Seed,
    StoreFlags,
    given,
    load_model,
    measured,
    split,
    with_settings,
)
from kvtool.errors import DONE

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.evaluation.plan import Plan


@with_settings(ModelFlags)
def run(
    names: DocumentNames = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R1,R2,…",
            help="Choose among these: RECIPE or RECIPE:PARAMETER=VALUE:…, separated by commas (default: eleven that range "
            "from all bits to a fifth of one, without those that lack a calibration).",
            autocompletion=complete_recipes,
        ),
    ] = None,
    documents: Annotated[int | None, measured("documents", 4)] = None,
    context: Annotated[int | None, measured("context", 1024)] = None,
    haystacks: Annotated[int | None, measured("haystacks", 1)] = None,
    seed: Seed = None,
    fresh: Fresh = False,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Recommend a recipe for each of exact, safe and small, by what each costs on your own documents.

    A dozen candidates are measured as by kvtool eval, on a few segments. One is recommended for each level: exact returns
    every bit; safe keeps KL at or below 0.01 and finds what raw finds; small keeps KL at or below 0.1 and four fifths of
    what raw finds. Nothing in the store is changed. An interrupted run, started again, goes on where it stopped.
    """
    from dataclasses import replace

    from kvtool.evaluation.evaluation import run_plan
    from kvtool.recommendation.choose import recommendation
    from kvtool.recommendation.recommend import SCOPE, plan_candidates
    from kvtool.report.recommendation import lines
    from kvtool.store.open import open_store

    scope = replace(SCOPE, **given(documents=documents, context=context, haystacks=haystacks, seed=seed))
    model = load_model(settings)
    store = open_store(settings.store, existing=True)
    planned = plan_candidates(store, names or None, model, split(recipes), scope, fresh)
    shown = [*render_plan(planned), *_expected(planned)]
    for line in shown:
        output.note(line)
    if dry_run:
        return DONE
    known = len(planned.notes)
    with output.Bar("evaluating") as bar:
        evaluation = run_plan(
            planned,
            command=shlex.join(["kvtool", *sys.argv[1:]]),
            on_progress=lambda p: bar.update(p.done, p.total, "tokens"),
        )
    for line in evaluation.json["notes"][known:]:
        output.note(line)
    result = recommendation(evaluation.json, names or (), _flags(settings))
    output.emit(result, output.Lines(lines(result)), as_json)
    return DONE


def _flags(settings: Settings) -> list[str]:
    """The flags that ``kvtool compress`` needs for the same store and model: those of settings that are not the default."""
    names = StoreFlags.__annotations__ | ModelFlags.__annotations__
    values = {name: getattr(settings, name) for name in names}
    changed = [name for name in names if values[name] != type(settings).model_fields[name].default]
    return [word for name in changed for word in (f"--{name.replace('_', '-')}", str(values[name]))]


def _expected(plan: Plan) -> list[str]:
    """How long it may take, by the speed of the last prefill; nothing where none was timed here."""
    from kvtool.model.prefill_speed import recall

    speed = recall(plan.runner.model.fingerprint)
    if speed is None:
        return []
    minutes = max(1, round(plan.cost / speed / 60))
    return [f"this takes about {minutes} min, less where an earlier run has measured some of it"]
