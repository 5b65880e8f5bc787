"""What is asked of a recipe that leaves out tokens, and the parameters that are open to meet it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvtool.codecs import Recipe
from kvtool.codecs.recipe import Between
from kvtool.compression.pipeline_options import Parameters
from kvtool.compression.target import KEEP, Target, fineness

BITS = (8, 6, 4, 3, 2, 1)
"""Bits of a code, for which the share kept is searched."""

FINER = (8.0, 4.0, 2.0, 1.0)
"""How many times finer than its default a dial is tried, where only memory is asked for."""


@dataclass(frozen=True)
class Wanted:
    """At most ``target``, stored, and at most the share ``resident`` of the raw cache's memory, loaded; None for no limit."""

    target: Target | None = None
    resident: float | None = None

    @property
    def options(self) -> str:
        target = [f"--{self.target.unit} {self.target.value:g}"] if self.target else []
        resident = [f"--resident {percent(self.resident)}"] if self.resident is not None else []
        return " and ".join(target + resident)


@dataclass(frozen=True)
class Space:
    """The parameters of a recipe that are open. ``keep`` is None where it is set, ``name`` is empty where the fineness is.

    ``settings`` of the fineness are all that are allowed or, from the finest, those that are tried.
    """

    recipe: str
    keep: Between | None
    name: str = ""
    settings: Between | tuple[float, ...] = ()
    default: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe, parameters: Parameters) -> Space:
        keep = recipe.parameters[KEEP].allowed if KEEP not in parameters else None
        assert keep is None or isinstance(keep, Between)
        name = fineness(recipe)
        if not name or name in parameters:
            return cls(recipe.name, keep)
        parameter = recipe.parameters[name]
        settings = parameter.allowed
        if not (recipe.dial and isinstance(settings, Between)):
            settings = tuple(bits for bits in BITS if parameter.accepts(bits))
        return cls(recipe.name, keep, name, settings, float(parameter.default))

    @property
    def grid(self) -> tuple[Mapping[str, float], ...]:
        """A few settings of the fineness, from the finest; one that says nothing where it is set."""
        if not self.name:
            return ({},)
        if isinstance(self.settings, Between):
            low = self.settings.low
            return tuple({self.name: max(self.default / factor, low)} for factor in FINER)
        return tuple({self.name: bits} for bits in self.settings)

    @property
    def is_joint(self) -> bool:
        """Whether both parameters are open, so that several settings may be of one size."""
        return self.keep is not None and bool(self.name)

    @property
    def first(self) -> Mapping[str, float]:
        """Some setting: the finest of those that are tried, and all tokens."""
        return {**({KEEP: self.keep.high} if self.keep else {}), **self.grid[0]}


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def shown(parameters: Mapping[str, float]) -> str:
    """Parameters for people."""
    return ", ".join(f"{name}={value:g}" for name, value in parameters.items())
