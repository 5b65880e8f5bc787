"""kvtool recipes: how caches can be compressed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from kvtool.commands import common

if TYPE_CHECKING:
    from kvtool.codecs import Recipe


def run(
    name: Annotated[Optional[str], typer.Argument(help="One recipe, in full.", metavar="[RECIPE]")] = None,
    as_json: common.JsonOption = False,
) -> None:
    """List the recipes: paper, what each needs, nominal bits. Or show one: parameters, what differs from its paper."""
    from kvtool.codecs import CodecError
    from kvtool.codecs.registry import recipe as find_recipe
    from kvtool.codecs.registry import recipes
    from kvtool.errors import UsageError

    if name is not None:
        try:
            chosen = find_recipe(name)
        except CodecError as error:
            raise UsageError(None, error) from error
        common.print_json(_described(chosen)) if as_json else typer.echo(_page(chosen))
        return
    found = list(recipes().values())
    if as_json:
        common.print_json([_described(recipe) for recipe in found])
        return
    rows = [
        (
            recipe.name,
            recipe.paper.split(" ")[0] or "–",
            ", ".join(_needs(recipe)) or "–",
            "–" if recipe.calibration else f"{recipe.nominal_bits():.2f}",
            recipe.summary,
        )
        for recipe in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, ("", "arXiv", "needs", "bits", ""), strict=True)]
    for row in (("recipe", "arXiv", "needs", "bits", "what it does"), *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    common.say(
        "bits: nominal, per value; entropy coding takes fewer. kvtool recipes RECIPE shows one in full"
    )


def _needs(recipe: Recipe) -> list[str]:
    # What a calibrated pipeline needs besides is known once it is built.
    return ["calibration"] if recipe.calibration else sorted(recipe.build().needs)


def _described(recipe: Recipe) -> dict[str, object]:
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


def _page(recipe: Recipe) -> str:
    import inspect

    lines = [f"{recipe.name}: {recipe.summary}", "", inspect.getdoc(recipe.make) or "", ""]
    for name, parameter in recipe.parameters.items():
        lines.append(f"  {name}={parameter.default}  {parameter.help}; {parameter.choices}")
    return "\n".join(lines)
