"""kvtool recipes: list the ways to compress a cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_recipe
from kvtool.commands.options import AsJson, StoreFlags, with_settings
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.codecs import Calibration, Recipe
    from kvtool.codecs.recipe import Preset
    from kvtool.config import Settings

HEADINGS = ("arXiv", "needs", "bits", "what it does")
LEGEND = (
    "needs: a calibration of the model, or a short run of the model over each document. bits: nominal, per value of all "
    "tokens; entropy coding takes fewer",
    "join one that drops tokens to one that keeps all by a plus: kvzip+kivi. kvtool recipes RECIPE shows one in full",
)


@with_settings(StoreFlags)
def run(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Show this recipe in full.", autocompletion=complete_recipe),
    ] = None,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """List the recipes with paper, needs and nominal bits, or show one with its parameters and its differences from the paper.

    One with presets is shown with what they promise, and with what the store's calibrations measured for them.
    """
    from kvtool.codecs import CodecError
    from kvtool.codecs.recipe_registry import recipe, recipes

    if name is None:
        every = list(recipes().values())
        output.emit([to_json(each) for each in every], render_list(every), as_json)
        return
    try:
        chosen = recipe(name)
    except CodecError as error:
        raise UsageError(None, error) from error
    measured = _calibrations(chosen, settings.store)
    output.emit(to_json(chosen, measured), render(chosen, measured), as_json)


def _calibrations(recipe: Recipe, place: object) -> Mapping[str, Calibration]:
    """The newest calibration of each model whose documents a local store holds, by the model's name."""
    from pathlib import Path

    from kvtool.store.local import LocalStore

    if recipe.dial is None or not recipe.calibration or not Path(str(place)).is_dir():
        return {}
    store = LocalStore(Path(str(place)))
    models = {one.model["fingerprint"]: one.model["name"] for one in store.readable()}
    newest = ((name, store.calibrations.newest(recipe.calibration, model)) for model, name in models.items())
    return {name: calibration for name, calibration in newest if calibration}


def _measured_json(recipe: Recipe, model: str, calibration: Calibration) -> dict[str, Any]:
    assert recipe.dial is not None
    every = {name: recipe.dial.measured(name, calibration) for name in recipe.dial.presets}
    presets = {name: asdict(one) for name, one in every.items() if one}
    return {"model": model, "calibration": calibration.digest, "presets": presets}


def to_json(recipe: Recipe, measured: Mapping[str, Calibration] = MappingProxyType({})) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "paper": recipe.paper or None,
        "needs": _needs(recipe),
        "nominal_bits": None if recipe.calibration else round(recipe.nominal_bits(), 4),
        "parameters": {
            name: {"default": p.default, "allowed": p.choices, "help": p.help}
            for name, p in recipe.parameters.items()
        },
        "presets": {name: asdict(preset) for name, preset in _presets(recipe).items()},
        "measured": [_measured_json(recipe, *one) for one in measured.items()],
    }


def render_list(recipes: Sequence[Recipe]) -> output.Lines:
    keep_all = [_row(recipe) for recipe in recipes if not recipe.prunes]
    drop_some = [_row(recipe) for recipe in recipes if recipe.prunes]
    rows = [("keep all tokens", *HEADINGS), *keep_all, ("drop tokens", *HEADINGS), *drop_some]
    lines = output.table(rows)
    return output.Lines([*lines[: len(keep_all) + 1], "", *lines[len(keep_all) + 1 :]], LEGEND)


def _row(recipe: Recipe) -> tuple[str, ...]:
    paper = recipe.paper.split(" ")[0] or "–"
    if recipe.calibration:
        return recipe.name, paper, "calibration", "–", recipe.summary
    needs = "model" if recipe.build().needs else "–"
    return recipe.name, paper, needs, f"{recipe.nominal_bits():.2f}", recipe.summary


def render(recipe: Recipe, measured: Mapping[str, Calibration] = MappingProxyType({})) -> output.Lines:
    parameters = [f"  {name}={p.default}  {p.help}; {p.choices}" for name, p in recipe.parameters.items()]
    about = [
        f"{recipe.name}: {recipe.summary}",
        "",
        *inspect.cleandoc(recipe.make.__doc__ or "").split("\n"),
        "",
    ]
    presets = [f"  {name}: {preset.describe()}" for name, preset in _presets(recipe).items()]
    promised = ["", "Presets, and what they promise on every model:", *presets] if presets else []
    for model, calibration in measured.items():
        promised += ["", f"On {model}:", *preset_lines(recipe, calibration)]
    return output.Lines([*about, *parameters, *promised])


def preset_lines(recipe: Recipe, calibration: Calibration) -> list[str]:
    """A line for each preset, with what ``calibration`` measured for it; one that says so where it measured nothing."""
    dial, lines = recipe.dial, []
    for name in dial.presets if dial else ():
        assert dial is not None
        if measured := dial.measured(name, calibration):
            kept = "" if measured.met else "; its promise cannot be kept on this model"
            lines.append(f"  {name}: {dial.parameter}={measured.setting:g}, {measured.describe()}{kept}")
    return lines or ["  not measured: the calibration is older, or of too little text"]


def _presets(recipe: Recipe) -> Mapping[str, Preset]:
    return recipe.dial.presets if recipe.dial else {}


def _needs(recipe: Recipe) -> list[str]:
    # What else a calibrated pipeline needs is known once it is built, with the calibration.
    return ["calibration"] if recipe.calibration else sorted(recipe.build().needs)
