"""A preset for a run of ``compress``: the setting that its calibration found for it, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvtool.codecs import Calibration, Recipe
from kvtool.codecs.recipe import MeasuredPreset, Preset


@dataclass(frozen=True)
class ChosenPreset:
    """A preset of a recipe, with the ``setting`` of the dial ``parameter`` that it stands for.

    ``measured`` is what the calibration measured with it, None for what nobody measured; ``unmeasured`` then says why.
    """

    name: str
    promise: Preset
    parameter: str
    setting: float
    measured: MeasuredPreset | None
    unmeasured: str = ""

    @property
    def is_unmet(self) -> bool:
        """Whether the promise was measured, and no setting keeps it on this model."""
        return self.measured is not None and not self.measured.met

    def describe(self) -> str:
        """What to expect, for people, in one line."""
        chosen = f"preset {self.name}, {self.parameter}={self.setting:g}"
        if self.measured is None:
            return f"{chosen}: {self.unmeasured}"
        return f"{chosen}: {self.measured.describe()} on this model, measured when it was calibrated"

    def describe_unmet(self) -> str:
        """The promise that is not kept, for people."""
        assert self.measured is not None
        return (
            f"no setting keeps what preset {self.name} promises on this model ({self.promise.describe()}); "
            f"{self.parameter}={self.setting:g} comes nearest, with {self.measured.describe()}"
        )

    def to_json(self) -> dict[str, Any]:
        measured = self.measured
        return {
            "name": self.name,
            "parameter": self.parameter,
            "setting": self.setting,
            "met": measured and measured.met,
            "kl": measured and measured.kl,
            "bits_per_value": measured and measured.bits_per_value,
            "retrieval": measured and measured.retrieval,
        }


def choose_preset(
    recipe: Recipe, name: str, calibration: Calibration | None, *, otherwise: str = ""
) -> ChosenPreset:
    """The preset of that name, with what ``calibration`` measured unless something else is asked for too, ``otherwise``."""
    dial = recipe.dial
    assert dial is not None
    measured = dial.measured(name, calibration)
    unmeasured = ""
    if measured is None:
        unmeasured = "not measured on this model, since the calibration is older, or of too little text"
    elif otherwise:
        unmeasured = f"not measured {otherwise}"
    setting = dial.setting(name, calibration)
    return ChosenPreset(
        name, dial.presets[name], dial.parameter, setting, None if unmeasured else measured, unmeasured
    )
