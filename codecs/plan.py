"""Plans of pipelines: the tensors at each point, known before any data flows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from kvtool.codecs.errors import CodecError
from kvtool.codecs.spec import Array, Place, Spec
from kvtool.codecs.stage import Stage

ORDER = {"transform": 1, "quantize": 2, "entropy": 3}

STAGES_AT_MOST = 64
"""On a side; every layer is planned stage by stage."""


@dataclass(frozen=True)
class Plan:
    """The tensors at each point of a pipeline: ``keys[i]`` goes into its i-th stage, ``keys[-1]`` is stored."""

    keys: tuple[Spec, ...]
    values: tuple[Spec, ...]

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored tensors of a layer or group, by name, in order: ``keys``, or ``keys.codes``, ``keys.scale``, …"""
        sides = (("keys", self.keys[-1]), ("values", self.values[-1]))
        return {stored_name(side, n): array for side, spec in sides for n, array in spec.arrays.items()}

    @property
    def needs(self) -> frozenset[str]:
        return self.keys[-1].needs | self.values[-1].needs

    @property
    def nbytes(self) -> int:
        """An upper bound on the bytes of these tensors."""
        return self.keys[-1].nbytes + self.values[-1].nbytes


@lru_cache(maxsize=1024)
def plan_side(side: str, stages: tuple[Stage, ...], x: Array, place: Place) -> tuple[Spec, ...]:
    """The specs before, between and after a side's stages. Raises CodecError, naming the stage at fault."""
    if len(stages) > STAGES_AT_MOST:
        raise CodecError(f"pipeline: {side}: has {len(stages)} stages, expected at most {STAGES_AT_MOST}")
    specs = [Spec({"x": x}, frozenset(), place)]
    previous: Stage | None = None
    for stage in stages:
        once = stage.kind in ("quantize", "entropy")
        if previous and ORDER[stage.kind] < ORDER[previous.kind] + once:
            raise CodecError(
                f"pipeline: {side}: {stage.label} is out of place after {previous.label}; "
                "the order is transform* quantize? entropy"
            )
        try:
            planned = stage.plan(specs[-1])
        except CodecError as error:
            raise CodecError(f"pipeline: {side}: {error}") from None
        specs.append(replace(planned, needs=planned.needs | stage.needs))
        previous = stage
    if previous and previous.kind != "entropy":
        raise CodecError(f"pipeline: {side}: ends in {previous.label}, expected entropy")
    return tuple(specs)


def stored_name(side: str, name: str) -> str:
    """The name of a payload's tensor among a layer's: ``x`` has the side's own name."""
    return side if name == "x" else f"{side}.{name}"
