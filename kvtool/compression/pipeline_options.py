"""What a user writes → a pipeline: a recipe and its parameters, and what is otherwise for one side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TypeAlias

from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import CodecError, Pipeline
from kvtool.codecs.registry import recipe as find_recipe
from kvtool.errors import UsageError

Parameters: TypeAlias = Mapping[str, int | float | str]
"""A recipe's, by name."""


def pipeline_of(
    recipe: str,
    keys: str | int | None = None,
    values: str | int | None = None,
    find: FindCalibration | None = None,
    **parameters: int | float | str,
) -> Pipeline:
    """The recipe's pipeline. ``keys`` and ``values`` say otherwise for one side: bits, a recipe, or recipe:bits.

    ``find`` gives recipes the calibrations that they need. Raises ``UsageError`` for an unknown recipe, parameter or
    value, for a calibration that is missing or of another method, and for sides that do not go together.
    """
    try:
        base = recipe, parameters
        own = [
            base if side is None else _side(option, str(side), recipe, parameters)
            for option, side in (("--keys", keys), ("--values", values))
        ]
        # All of it before any calibration, which may have to be made first.
        for name, given in (base, *own):
            find_recipe(name).check(given)
        first = _built(*own[0], find)
        sides = [first, first if own[0] == own[1] else _built(*own[1], find)]
    except CodecError as error:
        raise UsageError(None, error) from error
    if sides[0].layers != sides[1].layers:
        raise UsageError(
            "--keys and --values",
            (
                f"code {sides[0].layers or 'all'} and {sides[1].layers or 'all'} layers together, "
                "expected the same"
            ),
            "take both sides from one recipe, or recipes that code layer by layer",
        )
    return Pipeline(sides[0].keys, sides[1].values, sides[0].layers)


def _built(recipe: str, parameters: Parameters, find: FindCalibration | None) -> Pipeline:
    found = find_recipe(recipe)
    return found.build(find(found) if find and found.calibration else None, **parameters)


def _side(option: str, text: str, recipe: str, parameters: Parameters) -> tuple[str, Parameters]:
    """A recipe and its parameters."""
    name, _, bits = text.rpartition(":") if ":" in text or _is_number(text) else (text, "", "")
    own = parameters if name in ("", recipe) else {}
    if bits and not _is_number(bits):
        raise UsageError(
            f"{option} {text}", f"{bits!r} is no number of bits", "expected BITS, RECIPE or RECIPE:BITS"
        )
    return name or recipe, {**own, **({"bits": int(bits)} if bits else {})}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def parameters_of(options: Iterable[str], where: str, example: str) -> dict[str, int | float | str]:
    """``name=value`` of each of ``options``, the value a number where it is one. ``where`` begins an error."""
    found: dict[str, int | float | str] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not name or not equals:
            raise UsageError(where, f"{option!r} is no parameter", f"expected NAME=VALUE, as in {example}")
        found[name] = text
        for kind in (float, int):
            with suppress(ValueError):
                found[name] = kind(text)
    return found
