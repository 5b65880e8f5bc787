"""What a serde of LMCache's is configured with, ``"serde": {"type": "kvtool", …}``, and the coder that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from kvtool.codecs import Calibration, Pipeline, recipe
from kvtool.codecs.recipe import WINDOWS
from kvtool.connectors.lmcache.coder import Coder
from kvtool.connectors.lmcache.known_chunks import HashChunks, Hashing, KnownChunks
from kvtool.errors import UsageError
from kvtool.store.base import Store
from kvtool.store.open import open_store

DEFAULTS: Mapping[str, Any] = {"power": 0.0, **dict.fromkeys(WINDOWS, 0)}
"""Parameters of recipes that differ here: a chunk's last tokens are not a document's, and nobody knows the attention to them."""

START_SECONDS = 10.0
"""For which the server's start waits at most until the store's documents are known."""

MakeHash = Callable[[str, int], HashChunks]
"""LMCache's hashes by an algorithm's name, and the tokens of a chunk."""


@dataclass(frozen=True)
class SerdeOptions:
    """``heads`` are those of a layer's keys on one rank; ``fused`` says that each has its key and its value in one row.
    ``room`` is a share of the bytes that keys and values take.

    Recipes that need a calibration need a ``store``, whose documents' chunks they code; ``otherwise`` is for all others.
    ``model`` is the name by which LMCache knows the model of these documents. ``calibration`` is a digest, and
    ``chunk_size`` and ``hash_algorithm`` are the server's.
    """

    recipe: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None
    fused: bool = False
    room: float | None = None
    store: str | None = None
    model: str | None = None
    calibration: str | None = None
    otherwise: str = "lossless"
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    max_workers: int = 1

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> SerdeOptions:
        """Raises ``UsageError``, naming the option, for one that is unknown, missing or of another type."""
        known = {option.name: option for option in fields(cls)}
        if unknown := given.keys() - known.keys():
            raise UsageError(f"serde: {min(unknown)}", f"is no option, expected {', '.join(known)}")
        for name, option in known.items():
            if name not in given and option.default is option.default_factory is MISSING:
                raise UsageError(f"serde: {name}", "is missing", "expected the name of a recipe, as kivi")
            if name in given and not _is_of_type(given[name], str(option.type)):
                raise UsageError(f"serde: {name}", f"is {given[name]!r}, expected {option.type}")
        options = cls(**given)
        if options.room is not None and not 0 < options.room <= 1:
            raise UsageError("serde: room", f"is {options.room}, expected a share above 0, at most 1")
        return options

    def coder(self, make_hash: MakeHash) -> Coder:
        """Raises ``KvtoolError`` or ``CodecError``, naming what is wrong, for what cannot be coded by."""
        found = recipe(self.recipe)
        if not found.needs_calibration(self.parameters):
            if self.store or self.calibration:
                raise UsageError("serde: store", f"is given, and recipe {self.recipe!r} needs no calibration")
            own = _pipeline(self.recipe, self.parameters)
            return Coder(own, heads=self.heads or 1, fused=self.fused, room=self.room)
        if not self.store:
            expected = "name the store that has the model's documents and calibration"
            raise UsageError(
                "serde: store", f"is missing, and recipe {self.recipe!r} needs a calibration", expected
            )
        store = open_store(self.store, existing=True)
        calibration = self._calibration(store, found.calibration)
        name, heads = _model_of(store, calibration.model)
        hashing = Hashing(make_hash(self.hash_algorithm, self.chunk_size), self.chunk_size)
        known = KnownChunks(store, calibration.model, self.model or name, hashing)
        known.look_through(START_SECONDS)
        return Coder(
            _pipeline(self.recipe, self.parameters, calibration),
            _pipeline(self.otherwise, {}),
            heads=self.heads or heads,
            fused=self.fused,
            room=self.room,
            find=known.find,
            calibrations=store.calibrations,
        )

    def _calibration(self, store: Store, method: str) -> Calibration:
        if self.calibration:
            if self.calibration not in store.calibrations:
                raise UsageError(
                    "serde: calibration",
                    f"{self.calibration} is not in {store}",
                    "kvtool calibrate makes one",
                )
            return store.calibrations[self.calibration]
        models = {document.model["fingerprint"] for document in store.readable()}
        if len(models) != 1:
            reason = f"is missing, and {store} has documents of {len(models)} models"
            raise UsageError("serde: calibration", reason, "name one by its digest")
        if (newest := store.calibrations.newest(method, *models)) is None:
            raise UsageError(
                "serde: calibration", f"of method {method!r} is not in {store}", "kvtool calibrate makes one"
            )
        return newest


def _pipeline(name: str, parameters: Mapping[str, Any], calibration: Calibration | None = None) -> Pipeline:
    found = recipe(name)
    own = {name: value for name, value in DEFAULTS.items() if name in found.parameters}
    return found.build(calibration, **own | dict(parameters))


def _model_of(store: Store, fingerprint: str) -> tuple[str, int]:
    """The name of the model of that fingerprint, and the heads of its first layer's keys, as its documents have them."""
    for document in store.readable():
        if document.model["fingerprint"] == fingerprint:
            artifact = store.open(document.name, document.variants[0])
            return str(document.model["name"]), artifact.contents.geometry.layers[0].keys[0]
    raise UsageError(
        "serde: store", f"{store} has no document of the calibration's model", "kvtool prefill makes one"
    )


def _is_of_type(value: object, kind: str) -> bool:
    names = kind.split(" | ")
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, Mapping):
        return kind.startswith("Mapping")
    return (
        type(value).__name__ in names
        or (isinstance(value, int) and "float" in names)
        or (value is None and "None" in names)
    )
