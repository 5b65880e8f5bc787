"""Targets for a recipe: how small the variant has to be, on disk or in memory, or how near to the raw cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kvtool.codecs import CodecError, Recipe
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.pipeline_options import Parameters
from kvtool.counts import parse_share
from kvtool.errors import UsageError

SIZES, MAX_KL, PRESET = ("bits", "ratio"), "max_kl", "preset"

KEEP, RESIDENT = "keep", "resident"
"""The parameter of recipes that leave out tokens, and the target that it decides."""


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
    said about the dial, the preset is its default. Raises ``UsageError`` for two targets, and for a recipe that has nothing
    open to meet them with.
    """
    asked = recipe_of(recipe)
    dial = asked.dial
    targets = [
        unit for unit in (*SIZES, MAX_KL, PRESET) if unit in parameters and unit not in asked.parameters
    ]
    if not targets:
        _refuse_bits_as_size(asked, parameters)
        if dial is None or dial.parameter in parameters:
            return None, None, dict(parameters)
        return None, dial.default or None, dict(parameters)
    _refuse_nothing_open(asked, targets, parameters)
    target, others = targets[0], dict(parameters)
    value = others.pop(target)
    if target == PRESET:
        if dial is None or value not in dial.presets:
            presets = ", ".join(dial.presets if dial else ())
            expected = f"expected one of {presets}" if presets else f"recipe {recipe!r} has no presets"
            raise UsageError(f"--preset {value}", expected)
        return None, str(value), others
    if isinstance(value, str):
        raise UsageError(f"{_option(target)} {value}", "expected a number")
    return Target(target, float(value)), None, others


def split_resident(recipe: str, parameters: Parameters) -> tuple[float | None, dict[str, int | float | str]]:
    """The share of the raw cache's memory among ``parameters``, as 0.25 or "25%", and the parameters without it.

    Raises ``UsageError`` for what is no share, and for a recipe that leaves out no tokens, or is told how many.
    """
    others = dict(parameters)
    if RESIDENT not in others:
        return None, others
    text = str(others.pop(RESIDENT))
    share = parse_share(text)
    if math.isnan(share):
        reason = "expected a share of the raw cache's memory, as 25% or 0.25"
        raise UsageError(
            f"--resident {text}", reason, "documents differ in length, so that a size would not fit all"
        )
    asked = recipe_of(recipe)
    if KEEP not in asked.parameters:
        reason = f"recipe {recipe!r} leaves out no tokens, so that its caches are of full size once they are loaded"
        raise UsageError(
            f"--resident {text}", reason, f"name one that prunes first, as in --recipe kvzip+{recipe}"
        )
    if KEEP in others:
        raise UsageError("--resident and --keep", "say the same thing in different ways", "give one")
    if MAX_KL in others:
        reason = "are not searched for together"
        raise UsageError(
            "--resident and --max-kl", reason, "give --resident alone, or with --bits or --ratio"
        )
    return share, others


def fineness(recipe: Recipe) -> str:
    """The parameter that says how finely a recipe codes: its dial, or the bits of a code; empty for none."""
    if recipe.dial:
        return recipe.dial.parameter
    return "bits" if "bits" in recipe.parameters else ""


def recipe_of(name: str) -> Recipe:
    """The recipe of that name. Raises ``UsageError`` where there is none."""
    try:
        return find_recipe(name)
    except CodecError as error:
        raise UsageError(None, error) from error


def _refuse_bits_as_size(recipe: Recipe, parameters: Parameters) -> None:
    """Refuses a size in bits for a recipe that takes bits of a code, and could be asked for a size otherwise."""
    bits = parameters.get("bits")
    if isinstance(bits, (int, float)) and KEEP in recipe.parameters and "bits" in recipe.parameters:
        parameter = recipe.parameters["bits"]
        if bits > 0 and not parameter.accepts(bits):
            reason = f"is the size of a code for recipe {recipe.name!r}, expected {parameter.choices}"
            raise UsageError(
                f"--bits {bits:g}", reason, f"to ask for a size in all, give --ratio {16 / bits:g}"
            )


def _refuse_nothing_open(recipe: Recipe, targets: list[str], parameters: Parameters) -> None:
    """Refuses ``targets`` where the recipe has nothing to meet them with, and where more than one thing is asked of it."""
    options = " and ".join(map(_option, targets))
    decisive = [recipe.dial.parameter] if recipe.dial else []
    if targets[0] in SIZES and KEEP in recipe.parameters:
        decisive = [name for name in (KEEP, fineness(recipe)) if name]
    if not decisive:
        remedy = f"its parameters are: {', '.join(recipe.parameters) or 'none'}"
        raise UsageError(options, f"recipe {recipe.name!r} has no dial to turn", remedy)
    is_set = [name for name in decisive if name in parameters]
    if len(targets) > 1 or is_set == decisive:
        also = "".join(f" and {name}" for name in is_set)
        raise UsageError(f"{options}{also}", "say the same thing in different ways", "give one")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
