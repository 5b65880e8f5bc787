"""A target for a recipe's dial: how small the variant has to be, or how near to the raw cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kvtool.codecs import CodecError, Recipe
from kvtool.codecs.recipe import Dial
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.pipeline_options import Parameters
from kvtool.errors import UsageError

UNITS, PRESET = ("bits", "ratio", "max_kl"), "preset"


@dataclass(frozen=True)
class Target:
    """At most so many bits per value, at least a ratio to 16 bits, or at most a KL in nats per token."""

    unit: str
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise UsageError(f"{_option(self.unit)} {self.value:g}", "expected a number above 0")

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "value": self.value}

    @property
    def limit(self) -> float:
        """The largest value of what is measured, bits per value or KL, that meets the target."""
        return 16 / self.value if self.unit == "ratio" else self.value

    @property
    def needs_model(self) -> bool:
        """Whether it is measured by running the documents' model, whatever the recipe needs."""
        return self.unit == "max_kl"

    def describe(self, measured: float) -> str:
        """``measured`` in the target's own unit, for people."""
        if self.unit == "ratio":
            return f"ratio {16 / measured:.1f}"
        return f"{measured:.3f} bits per value" if self.unit == "bits" else f"KL {measured:.4f}"


def split_target(
    recipe: str, parameters: Parameters
) -> tuple[Target | None, str | None, dict[str, int | float | str]]:
    """The target among ``parameters`` or the preset, if there is one, and the parameters without it.

    ``bits``, ``ratio``, ``max_kl`` and ``preset`` are targets unless the recipe has a parameter so called. Where nothing is
    said about the dial, the preset is its default. Raises ``UsageError`` for a recipe without a dial and for two targets.
    """
    dialled = recipe_of(recipe)
    targets = [unit for unit in (*UNITS, PRESET) if unit in parameters and unit not in dialled.parameters]
    if not targets:
        if dialled.dial is None or dialled.dial.parameter in parameters:
            return None, None, dict(parameters)
        return None, dialled.dial.default or None, dict(parameters)
    dial = _dial(dialled, targets, parameters)
    target, others = targets[0], dict(parameters)
    value = others.pop(target)
    if target == PRESET:
        if value not in dial.presets:
            raise UsageError(f"--preset {value}", f"expected one of {', '.join(dial.presets)}")
        return None, str(value), others
    if isinstance(value, str):
        raise UsageError(f"{_option(target)} {value}", "expected a number")
    return Target(target, float(value)), None, others


def recipe_of(name: str) -> Recipe:
    """The recipe of that name. Raises ``UsageError`` where there is none."""
    try:
        return find_recipe(name)
    except CodecError as error:
        raise UsageError(None, error) from error


def _dial(recipe: Recipe, targets: list[str], parameters: Parameters) -> Dial:
    """The recipe's dial. Raises ``UsageError`` where it has none, and where more than one thing is asked of it."""
    options = " and ".join(map(_option, targets))
    if recipe.dial is None:
        remedy = f"its parameters are: {', '.join(recipe.parameters) or 'none'}"
        raise UsageError(options, f"recipe {recipe.name!r} has no dial to turn", remedy)
    is_set = recipe.dial.parameter in parameters
    if len(targets) > 1 or is_set:
        also = f" and {recipe.dial.parameter}" if is_set else ""
        raise UsageError(f"{options}{also}", "say the same thing in different ways", "give one")
    return recipe.dial


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
