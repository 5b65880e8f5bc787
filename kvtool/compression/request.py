"""A request to ``compress``, checked as far as that goes without a store."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import Calibration, Pipeline
from kvtool.compression.inputs import variant_name
from kvtool.compression.pipeline_options import Parameters, pipeline_of
from kvtool.compression.target import Target, split_target
from kvtool.errors import UsageError
from kvtool.store.manifest import AVERAGED_IN_RECORDS, RAW


@dataclass(frozen=True)
class Request:
    """A recipe with its parameters, and what the variant is called.

    ``keys`` and ``values`` change one side alone, as ``pipeline_of`` says. ``target`` is met by the recipe's dial, which
    ``parameters`` then leave open, and so they do with a ``preset``. ``source`` is the variant that is compressed.
    """

    recipe: str
    parameters: Parameters
    target: Target | None
    preset: str | None
    keys: str | int | None
    values: str | int | None
    calibration: Calibration | str | None
    variant: str
    source: str

    def pipeline(self, find: FindCalibration, **setting: float) -> Pipeline:
        """The pipeline, with a value of the dial where there is a target. Raises as ``pipeline_of`` does."""
        return pipeline_of(self.recipe, self.keys, self.values, find, **{**self.parameters, **setting})

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
            record |= {"target": self.target.to_json(), "parameters": dict(self.parameters)}
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
    target, preset, others = split_target(recipe, parameters)
    if target and source != RAW:
        raise UsageError(
            f"--source {source}",
            "what --bits, --ratio and --max-kl find is measured on the raw cache",
            f"compress that, and then --source {source} with the setting that was found",
        )
    return Request(recipe, others, target, preset, keys, values, calibration, variant, source)
