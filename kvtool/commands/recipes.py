"""kvtool recipes: list the ways to compress a cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.codecs import Recipe

HEADINGS = ("recipe", "arXiv", "needs", "bits", "what it does")
LEGEND = "bits: nominal, per value; entropy coding takes fewer. kvtool recipes RECIPE shows one in full"


def run(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Show this recipe in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes with paper, needs and nominal bits, or show one with its parameters and its differences from the paper."""
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
    output.emit(to_json(chosen), render(chosen), as_json)


def to_json(recipe: Recipe) -> dict[str, Any]:
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
    }


def render_list(recipes: Sequence[Recipe]) -> output.Lines:
    rows = []
    for recipe in recipes:
        paper, needs = recipe.paper.split(" ")[0] or "–", ", ".join(_needs(recipe)) or "–"
        bits = "–" if recipe.calibration else f"{recipe.nominal_bits():.2f}"
        rows.append((recipe.name, paper, needs, bits, recipe.summary))
    return output.Lines(output.table([HEADINGS, *rows]), [LEGEND])


def render(recipe: Recipe) -> output.Lines:
    parameters = [f"  {name}={p.default}  {p.help}; {p.choices}" for name, p in recipe.parameters.items()]
    about = [
        f"{recipe.name}: {recipe.summary}",
        "",
        *inspect.cleandoc(recipe.make.__doc__ or "").split("\n"),
        "",
    ]
    return output.Lines([*about, *parameters])


def _needs(recipe: Recipe) -> list[str]:
    # What else a calibrated pipeline needs is known once it is built, with the calibration.
    return ["calibration"] if recipe.calibration else sorted(recipe.build().needs)
