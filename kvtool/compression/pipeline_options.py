"""Options of a user → a pipeline: a recipe with its parameters, and other ones for keys or values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import CodecError, Pipeline
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.errors import UsageError

Parameters: TypeAlias = Mapping[str, int | float | str]
"""Parameters of a recipe, by name."""


def pipeline_of(
    recipe: str,
    keys: str | int | None = None,
    values: str | int | None = None,
    find: FindCalibration | None = None,
    **parameters: int | float | str,
) -> Pipeline:
    """The recipe's pipeline. ``keys`` and ``values`` replace it for one side by bits, a recipe, or recipe:bits.

    ``find`` gives recipes the calibrations that they need. Raises ``UsageError`` for an unknown recipe, parameter or
    value, for a calibration that is missing or of another method, and for sides that do not go together.
    """
    try:
        base = recipe, parameters
        choices = [
            base if side is None else _side(option, str(side), recipe, parameters)
            for option, side in (("--keys", keys), ("--values", values))
        ]
        # Everything is checked before any calibration, which may have to be made first.
        for name, options in (base, *choices):
            find_recipe(name).check(options)
        first = _build(*choices[0], find)
        sides = [first, first if choices[0] == choices[1] else _build(*choices[1], find)]
    except CodecError as error:
        raise UsageError(None, error) from error
    if sides[0].layers != sides[1].layers:
        together = " and ".join(str(side.layers or "all") for side in sides)
        reason = f"code {together} layers together, expected the same"
        remedy = "take both sides from one recipe, or recipes that code layer by layer"
        raise UsageError("--keys and --values", reason, remedy)
    if sides[0].prune != sides[1].prune:
        reason = "leave out different tokens, and keys and values of a token go together"
        raise UsageError("--keys and --values", reason, f"name the pruning in --recipe, as in kvzip+{recipe}")
    return replace(sides[0], values=sides[1].values)


def _build(name: str, parameters: Parameters, find: FindCalibration | None) -> Pipeline:
    recipe = find_recipe(name)
    return recipe.build(find(recipe) if find and recipe.needs_calibration(parameters) else None, **parameters)


def _side(option: str, text: str, recipe: str, parameters: Parameters) -> tuple[str, Parameters]:
    """The recipe of one side, and its parameters."""
    name, _, bits = text.rpartition(":") if ":" in text or _is_number(text) else (text, "", "")
    kept = parameters if name in ("", recipe) else {}
    if bits and not _is_number(bits):
        remedy = "expected BITS, RECIPE or RECIPE:BITS"
        raise UsageError(f"{option} {text}", f"{bits!r} is no number of bits", remedy)
    return name or recipe, {**kept, **({"bits": float(bits) if "." in bits else int(bits)} if bits else {})}


def _is_number(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit()


def parameters_of(options: Iterable[str], where: str, example: str) -> dict[str, int | float | str]:
    """Reads ``name=value`` of each of ``options``, the value as a number where it is one. ``where`` begins an error."""
    parameters: dict[str, int | float | str] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not name or not equals:
            raise UsageError(where, f"{option!r} is no parameter", f"expected NAME=VALUE, as in {example}")
        parameters[name] = text
        for kind in (float, int):
            with suppress(ValueError):
                parameters[name] = kind(text)
    return parameters
