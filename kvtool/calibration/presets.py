"""Presets on a model: the settings of a recipe's dial that keep what they promise on text held back from its calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from operator import add

from kvtool.calibration.held_back import HeldBack, Quality
from kvtool.calibration.search import search
from kvtool.codecs import Calibration, Recipe
from kvtool.codecs.recipe import PRESETS, Between, MeasuredPreset, Preset

TRIES = 4
"""The most settings that are tried for a preset, beside those that were tried for others."""

CLOSE = 0.15
"""The distance below the promise that is near enough, as a share of it. KL of so few tokens is not known better."""


def with_presets(
    recipe: Recipe,
    fitted: Calibration,
    contexts: Sequence[HeldBack],
    on_setting: Callable[[], None] = lambda: None,
) -> Calibration:
    """``fitted`` with a ``MeasuredPreset`` for each preset of the recipe among its facts; as it is without contexts.

    ``on_setting`` is called after each setting that was measured.
    """
    if not contexts or recipe.dial is None:
        return fitted
    dial = recipe.dial

    def measure(setting: float) -> Quality:
        pipeline = recipe.build(fitted, **{dial.parameter: setting})
        quality = reduce(add, (context.quality(pipeline) for context in contexts))
        on_setting()
        return quality

    allowed = recipe.parameters[dial.parameter].allowed
    assert isinstance(allowed, Between)
    found = find_settings(dial.presets, measure, (allowed.low, allowed.high))
    presets = {name: asdict(preset) for name, preset in found.items()}
    return replace(fitted, facts={**fitted.facts, PRESETS: presets})


def find_settings(
    presets: Mapping[str, Preset], measure: Callable[[float], Quality], between: tuple[float, float]
) -> dict[str, MeasuredPreset]:
    """The largest setting found that keeps each promise. What is measured for one preset serves the others."""
    tried: dict[float, Quality] = {}

    def quality(setting: float) -> Quality:
        if setting not in tried:
            tried[setting] = measure(setting)
        return tried[setting]

    return {name: _find(preset, quality, tried, between) for name, preset in presets.items()}


def _find(
    preset: Preset,
    quality: Callable[[float], Quality],
    known: Mapping[float, Quality],
    between: tuple[float, float],
) -> MeasuredPreset:
    found = search(
        lambda setting: used_up(preset, quality(setting)),
        1.0,
        start=preset.setting,
        between=between,
        rising=True,
        known=known,
        close=CLOSE,
        tries=TRIES,
    )
    return _measured(found.value, found.met, quality(found.value))


def used_up(preset: Preset, quality: Quality) -> float:
    """The larger of the shares of KL and of lost facts that the promise allows; more than 1 where it is not kept."""
    lost = 0.0 if quality.retrieval is None else (1 - quality.retrieval) / (1 - preset.min_retrieval)
    return max(quality.kl / preset.max_kl, lost)


def _measured(setting: float, met: bool, quality: Quality) -> MeasuredPreset:
    return MeasuredPreset(
        setting=setting,
        met=met,
        kl=_rounded(quality.kl),
        bits_per_value=_rounded(quality.bits_per_value),
        retrieval=None if quality.retrieval is None else _rounded(quality.retrieval),
        tokens=quality.tokens,
        facts=quality.facts,
    )


def _rounded(number: float) -> float:
    """To three digits: no more are known, and the low bits of a sum depend on the machine."""
    return float(f"{number:.3g}")
