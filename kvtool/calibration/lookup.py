"""Finds the calibration with which a recipe compresses a store's documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from kvtool.calibration.bundled_calibrations import bundled
from kvtool.codecs import Calibration, Recipe
from kvtool.errors import KvtoolError, UsageError
from kvtool.model.model import Model
from kvtool.store.base import Store

FindCalibration: TypeAlias = Callable[[Recipe], Calibration]
"""Gives a recipe the calibration that it needs. Raises KvtoolError if it has none."""

MakeCalibration: TypeAlias = Callable[[Recipe, str, str], Calibration]
"""Makes one for a recipe, and for the model of this fingerprint and this name."""


class MissingCalibration(UsageError):
    """A recipe needs a calibration, and the store has none that fits."""


def finder(
    store: Store,
    names: Sequence[str],
    chosen: Calibration | str | None = None,
    make: MakeCalibration | None = None,
) -> FindCalibration:
    """A function that finds the calibration for compressing the documents ``names``.

    That is ``chosen`` or, if it is a digest, the store's of that digest; else the store's newest of the recipe's method
    for the documents' model; else one that comes with kvtool; else the one that ``make`` makes. The function raises
    ``MissingCalibration`` where there is none, ``UsageError`` where there are several models.
    """

    known: dict[str, Calibration] = {}

    def find(recipe: Recipe) -> Calibration:
        # One for a whole run, whatever is put into the store meanwhile.
        if recipe.calibration not in known:
            known[recipe.calibration] = look(recipe)
        return known[recipe.calibration]

    def look(recipe: Recipe) -> Calibration:
        if isinstance(chosen, Calibration):
            return chosen
        if chosen is not None:
            if chosen not in store.calibrations:
                digests = ", ".join(store.calibrations) or "none"
                raise UsageError(
                    f"calibration {chosen}", f"is not in the store {store}", f"it has: {digests}"
                )
            return store.calibrations[chosen]
        fingerprint, model = _model(store, names)
        if existing := _existing(store, recipe, fingerprint):
            return existing
        if make is not None:
            return make(recipe, fingerprint, model)
        raise _missing(store, recipe, model)

    return find


def finder_for(store: Store, model: Model) -> FindCalibration:
    """A function that finds the calibration for ``model`` itself, whatever documents there are, and makes none.

    That is the store's newest, or one that comes with kvtool. The function raises ``MissingCalibration`` where there is none.
    """

    def find(recipe: Recipe) -> Calibration:
        if existing := _existing(store, recipe, model.fingerprint):
            return existing
        raise _missing(store, recipe, model.name)

    return find


def _existing(store: Store, recipe: Recipe, fingerprint: str) -> Calibration | None:
    """The store's newest of the recipe's method for the model of that fingerprint, or else the one that comes with kvtool."""
    newest = store.calibrations.newest(recipe.calibration, fingerprint)
    return newest or bundled(recipe.calibration, fingerprint)


def _missing(store: Store, recipe: Recipe, model: str) -> MissingCalibration:
    without = "".join(f", or give --set {name}={value}" for name, value in recipe.uncalibrated.items())
    return MissingCalibration(
        f"recipe {recipe.name!r}",
        f"needs a calibration of method {recipe.calibration!r} for {model}, and {store} has none",
        f"run kvtool calibrate --recipe {recipe.name} first{without}",
    )


def _model(store: Store, names: Sequence[str]) -> tuple[str, str]:
    """Fingerprint and name of the model that the documents were prefilled with. Unreadable documents do not count."""
    models: dict[str, str] = {}
    unread: KvtoolError | None = None
    for name in names:
        try:
            model = store[name].model
            models[model["fingerprint"]] = model["name"]
        except KvtoolError as error:
            unread = unread or error
    if len(models) > 1:
        several = ", ".join(f"{model} ({fingerprint[:12]}…)" for fingerprint, model in models.items())
        reason = f"the documents were prefilled with several models, {several}, and a calibration is of one"
        raise UsageError(str(store), reason, "name documents of one model")
    if not models:
        raise unread or UsageError(str(store), "has no documents to compress")
    return next(iter(models.items()))
