"""A request to ``compress``, checked as far as that goes without a store."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import Calibration, Pipeline
from kvtool.compression.inputs import variant_name
from kvtool.compression.joint.space import Space, Wanted
from kvtool.compression.pipeline_options import Parameters, pipeline_of
from kvtool.compression.target import KEEP, SIZES, Target, recipe_of, split_resident, split_target
from kvtool.errors import UsageError
from kvtool.store.manifest import AVERAGED_IN_RECORDS, RAW


@dataclass(frozen=True)
class Request:
    """A recipe with its parameters, and what the variant is called.

    ``keys`` and ``values`` change one side alone, as ``pipeline_of`` says. ``target`` is met by the recipe's dial, which
    ``parameters`` then leave open, and so they do with a ``preset``. ``resident`` is the share of the raw cache's memory that
    loaded caches take at most, None for no limit. ``source`` is the variant that is compressed.
    """

    recipe: str
    parameters: Parameters
    target: Target | None
    resident: float | None
    preset: str | None
    keys: str | int | None
    values: str | int | None
    calibration: Calibration | str | None
    variant: str
    source: str

    def pipeline(self, find: FindCalibration, **setting: float) -> Pipeline:
        """The pipeline, with values of what a target decides. Raises as ``pipeline_of`` does."""
        return pipeline_of(self.recipe, self.keys, self.values, find, **{**self.parameters, **setting})

    @property
    def is_targeted(self) -> bool:
        """Whether what is asked for has to be found."""
        return self.target is not None or self.resident is not None

    @property
    def space(self) -> Space | None:
        """What a size decides of a recipe that leaves out tokens; None for other targets and other recipes."""
        recipe = recipe_of(self.recipe)
        by_size = self.resident is not None or (self.target is not None and self.target.unit in SIZES)
        return Space.of(recipe, self.parameters) if by_size and KEEP in recipe.parameters else None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.target, self.resident)

    @property
    def needs_model(self) -> bool:
        """Whether the documents' model has to be run, whatever the recipe needs."""
        if self.space is not None:
            return self.space.is_joint
        return self.target is not None and self.target.needs_model

    @property
    def beside_preset(self) -> str:
        """What the request has other than a preset, so that nobody measured it; empty for nothing."""
        options = [f"{name}={value}" for name, value in self.parameters.items()]
        options += [
            f"--{side} {text}" for side, text in (("keys", self.keys), ("values", self.values)) if text
        ]
        if self.source != RAW:
            options.append(f"--source {self.source}")
        return f"with {', '.join(options)}" if options else ""

    @property
    def record(self) -> dict[str, object]:
        """The entry in a manifest of how the variant was made, without the pipeline."""
        record: dict[str, object] = {"name": self.recipe}
        if self.source != RAW:
            record["of"] = AVERAGED_IN_RECORDS
        if self.target:
            record["target"] = self.target.to_json()
        if self.resident is not None:
            record["resident"] = self.resident
        if self.is_targeted:
            record["parameters"] = dict(self.parameters)
        return record


def make_request(
    recipe: str,
    parameters: Parameters,
    *,
    keys: str | int | None = None,
    values: str | int | None = None,
    calibration: Calibration | str | None = None,
    name: str | None = None,
    source: str = RAW,
) -> Request:
    """Reads the arguments of ``compress``. Raises ``UsageError`` for those that do not make sense together."""
    variant = variant_name(recipe, name, source)
    resident, others = split_resident(recipe, parameters)
    target, preset, others = split_target(recipe, others)
    request = Request(recipe, others, target, resident, preset, keys, values, calibration, variant, source)
    if request.is_targeted and source != RAW:
        raise UsageError(
            f"--source {source}",
            "what --bits, --ratio, --max-kl and --resident find is measured on the raw cache",
            f"compress that, and then --source {source} with the setting that was found",
        )
    return request
