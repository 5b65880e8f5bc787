"""kvtool recipes: how caches can be compressed here."""

from __future__ import annotations

import typer

from . import common


def run(as_json: common.JsonOption = False) -> None:
    """List the recipes, their papers and parameters."""
    from ..codecs.registry import recipes

    rows = [
        {
            "name": recipe.name,
            "summary": recipe.summary,
            "paper": recipe.paper or None,
            "parameters": {
                name: {"default": p.default, "allowed": p.choices, "help": p.help}
                for name, p in recipe.parameters.items()
            },
        }
        for recipe in recipes().values()
    ]
    if as_json:
        common.print_json(rows)
        return
    for recipe in recipes().values():
        typer.echo(f"{recipe.name:10} {recipe.summary}" + (f" ({recipe.paper})" if recipe.paper else ""))
        for name, parameter in recipe.parameters.items():
            typer.echo(f"{'':12}{name}={parameter.default}  {parameter.help}; {parameter.choices}")
