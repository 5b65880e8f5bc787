"""Stages in a row, for the keys and for the values of a layer or a group of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.calibration import NONE, Calibration
from kvtool.codecs.errors import CodecError, NeedsError, unexpected
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.plan import STAGES_AT_MOST, Plan, plan_side, stored_name
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.spec import BY_TOKEN, POSITIONS, TOKEN_IDS, Array, Json, Payload, Place, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import stage_from_config
from kvtool.kernels.threads import side_by_side

Inputs: TypeAlias = Mapping[str, Sequence[Tensor]]
"""Inputs of stages beyond keys and values, by name: one tensor for each layer."""


@dataclass(frozen=True)
class Pipeline:
    """``Prune? (Transform* Quantize? Entropy)``, the latter on each side; a side without stages is stored as it is.

    ``layers`` neighbouring layers are coded together; 0 stands for all neighbours of equal sizes. The stages then
    get them stacked, [L, H, T, D]. ``prune`` leaves out tokens before; ``format.pruned`` applies it.
    """

    keys: tuple[Stage, ...] = ()
    values: tuple[Stage, ...] = ()
    layers: int = 1
    prune: Prune | None = None

    @property
    def grouped(self) -> bool:
        """Whether stages get layers stacked; a group may still have a single one."""
        return self.layers != 1

    @property
    def stages(self) -> tuple[Prune | Stage, ...]:
        """All stages, of both sides."""
        return (*([self.prune] if self.prune else []), *self.keys, *self.values)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the inputs that encoding needs, beyond those that every segment has."""
        return frozenset[str]().union(*(stage.needs for stage in self.stages)) - {POSITIONS, TOKEN_IDS}

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """The calibrations of its stages, each once, in their order. Decoding needs them beside the stored tensors."""
        held = (calibration for stage in self.stages for calibration in stage.calibrations)
        return tuple(dict.fromkeys(held))

    @property
    def chooses(self) -> bool:
        """Whether any of its stages may want another in its place."""
        return any(map(_chooses, self.keys + self.values))

    def plan(self, keys: Array, values: Array, place: Place = Place()) -> Plan:
        """Plan for keys [H, T, D] and values [H, T, Dv] of each layer at ``place``.

        Raises CodecError, naming the stage at fault.
        """
        sides = (("keys", self.keys, keys), ("values", self.values, values))
        return Plan(*(plan_side(side, stages, self._stacked(x, place), place) for side, stages, x in sides))

    def suited(self, layers: Sequence[LayerKV], place: Place, inputs: Inputs) -> Pipeline:
        """This pipeline, with other stages if these layers are unlike those of its calibration.

        Raises CodecError and NeedsError as ``encode`` does.
        """
        plan, available = self._planned(layers, place, inputs)
        sides: dict[str, tuple[Stage, ...]] = {}
        for side, stages, specs in self._sides(plan):
            own, at_stage = list(stages), _inputs(stages, specs, available)
            payload: Payload = {"x": self._stack([getattr(layer, side) for layer in layers])}
            last = max((n for n, stage in enumerate(stages) if _chooses(stage)), default=-1)
            for n in range(last + 1):
                payload = {**payload, **at_stage[n]}
                own[n] = stages[n].suited(payload, specs[n])
                if n < last:
                    payload = stages[n].encode(payload, specs[n])
            sides[side] = tuple(own)
        return replace(self, keys=sides["keys"], values=sides["values"])

    def encode(
        self, layers: Sequence[LayerKV], place: Place = Place(), inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """The stored tensors of the layers at ``place``, named and ordered as ``Plan.arrays``.

        ``inputs`` has one tensor for each of ``layers``. Raises CodecError for NaN or infinity, with the layer
        and the token, and for what a stage refuses; NeedsError for an input that is wanted and not given.
        """
        plan, available = self._planned(layers, place, inputs or {})
        if missing := plan.needs - available.keys():
            raise NeedsError(missing)
        stored: dict[str, Tensor] = {}
        for side, stages, specs in self._sides(plan):
            tensors = [getattr(layer, side) for layer in layers]
            for index, tensor in enumerate(tensors, place.first):
                _check_finite(f"layer {index}: {side}", tensor)
            # Stages may rely on it; without any, a slice of a longer cache is stored uncopied.
            stacked = self._stack(tensors)
            payload: Payload = {"x": stacked.contiguous() if stages else stacked}
            at_stage = _inputs(stages, specs, available)
            for stage, (before, after), extra in zip(stages, pairwise(specs), at_stage, strict=True):
                try:
                    payload = stage.encode({**payload, **extra}, before)
                except CodecError as error:
                    raise CodecError(f"{_label(place)}: {side}: {error}") from None
                after.check(payload, f"{_label(place)}: {side}: after stage {stage.name!r}")
            stored |= {stored_name(side, name): payload[name] for name in specs[-1].arrays}
        return stored

    def decode(
        self,
        tensors: Mapping[str, Tensor],
        keys: Array,
        values: Array,
        positions: Sequence[Tensor],
        place: Place = Place(),
        tokens: range | None = None,
        token_ids: Tensor | None = None,
        device: torch.device | None = None,
    ) -> list[LayerKV]:
        """Undo ``encode`` for layers whose keys and values were as ``keys`` and ``values`` say.

        With ``tokens``, only that range is given, and no more is decoded than it needs. ``token_ids`` [T] are for
        stages that need them. Keys and values are given on ``device``, by default the CPU, and the last stages that can
        compute there do so.

        Names, dtypes and shapes are held against the plan before any content is read, so that nothing larger
        than planned is allocated. Raises CodecError, naming the tensor.
        """
        plan = self.plan(keys, values, place)
        Spec(plan.arrays).check(tensors, _label(place))
        available = {POSITIONS: self._stack(positions)}
        if token_ids is not None:
            available[TOKEN_IDS] = self._stack([token_ids] * len(positions))
        if missing := plan.needs & {TOKEN_IDS} - available.keys():
            raise NeedsError(missing)

        def side_of(side: str, stages: tuple[Stage, ...], specs: tuple[Spec, ...]) -> Tensor:
            payload: Payload = {name: tensors[stored_name(side, name)] for name in specs[-1].arrays}
            at_stage, wanted = _inputs(stages, specs, available), _wanted(stages, specs, tokens)
            steps = list(zip(stages, pairwise(specs), at_stage, wanted, strict=True))
            # From here on, all stages compute where their payload is.
            moved = next((n for n, stage in enumerate(stages) if not stage.on_any_device), len(stages)) - 1
            for number, (stage, (before, _), extra, part) in reversed(list(enumerate(steps))):
                if number == moved:
                    payload = {name: tensor.to(device) for name, tensor in payload.items()}
                try:
                    payload = stage.decode_tokens({**payload, **extra}, before, part)
                except CodecError as error:
                    raise CodecError(f"{_label(place)}: {side}: {error}") from None
                before.check(payload, f"{_label(place)}: {side}: decoded by stage {stage.name!r}")
            return payload["x"].to(device)

        calls = [partial(side_of, *side) for side in self._sides(plan)]
        # Where all layers are one group there is nothing else to share the work by.
        decoded = [call() for call in calls] if self.layers else side_by_side(calls)
        apart = [list(x) if self.grouped else [x] for x in decoded]
        whole = [LayerKV(*parts) for parts in zip(*apart, positions, strict=True)]
        return whole if tokens is None else [layer.of(tokens) for layer in whole]

    def error(
        self, layers: Sequence[LayerKV], place: Place = Place(), inputs: Inputs | None = None
    ) -> tuple[float, float]:
        """The largest absolute error that a decoded key, and a decoded value, may show."""
        plan, available = self._planned(layers, place, inputs or {})
        errors = []
        for side, stages, specs in self._sides(plan):
            payload = {"x": self._stack([getattr(layer, side) for layer in layers])}
            errors.append(_error(stages, specs, payload, _inputs(stages, specs, available)))
        return errors[0], errors[1]

    def to_config(self) -> dict[str, Json]:
        sides: dict[str, Json] = {
            "keys": [stage.to_config() for stage in self.keys],
            "values": [stage.to_config() for stage in self.values],
        }
        # Written only where they say something, so that pipelines keep the identity they had without them.
        grouped: dict[str, Json] = {"layers": self.layers} if self.grouped else {}
        return sides | grouped | ({"prune": self.prune.to_config()} if self.prune else {})

    @classmethod
    def from_config(cls, config: Json, calibrations: Mapping[str, Calibration] = NONE) -> Pipeline:
        """The pipeline that ``to_config`` described, its calibrations looked up by digest.

        Raises CodecError, naming the stage and the field; MissingCalibration for a digest that is missing.
        """
        if not isinstance(config, Mapping) or config.keys() - {"layers", "prune"} != {"keys", "values"}:
            raise unexpected("pipeline:", config, "an object of keys and values")
        layers = config.get("layers", 1)
        if type(layers) is not int or layers < 0 or (layers == 1 and "layers" in config):
            raise unexpected("pipeline: layers", layers, "an integer from 2, or 0 for all")
        keys, values = (_stages(side, config[side], calibrations) for side in ("keys", "values"))
        prune = stage_from_config(config["prune"], calibrations) if "prune" in config else None
        if prune is not None and not isinstance(prune, Prune):
            raise unexpected("pipeline: prune", prune.label, "a prune stage")
        return cls(keys, values, layers, prune)

    def _stacked(self, x: Array, place: Place) -> Array:
        return Array((place.count, *x.shape), x.dtype) if self.grouped else x

    def _planned(self, layers: Sequence[LayerKV], place: Place, inputs: Inputs) -> tuple[Plan, Payload]:
        """The plan for these layers, and all inputs of stages by name."""
        plan = self.plan(_array(layers[0].keys), _array(layers[0].values), place)
        available = {POSITIONS: self._stack([layer.positions for layer in layers])}
        tokens = layers[0].keys.shape[1]
        for name, tensors in inputs.items():
            available[name] = self._stack(tensors)
            if name in BY_TOKEN and {t.shape[-1] for t in tensors} != {tokens}:
                raise CodecError(f"pipeline: {name} is {list(tensors[0].shape)}, expected [..., {tokens}]")
        return plan, available

    def _sides(self, plan: Plan) -> Sequence[tuple[str, tuple[Stage, ...], tuple[Spec, ...]]]:
        return ("keys", self.keys, plan.keys), ("values", self.values, plan.values)

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(tensors)) if self.grouped else tensors[0]


def _chooses(stage: Stage) -> bool:
    return type(stage).suited is not Stage.suited


def _stages(side: str, configs: Json, calibrations: Mapping[str, Calibration]) -> tuple[Stage, ...]:
    if not isinstance(configs, Sequence) or isinstance(configs, str) or len(configs) > STAGES_AT_MOST:
        raise unexpected(f"pipeline: {side}", configs, f"a list of at most {STAGES_AT_MOST} stages")
    stages = [stage_from_config(config, calibrations) for config in configs]
    for stage in stages:
        if not isinstance(stage, Stage):
            raise unexpected(f"pipeline: {side}", stage.label, "transform, quantize or entropy stages")
    return tuple(stage for stage in stages if isinstance(stage, Stage))


def _wanted(stages: tuple[Stage, ...], specs: tuple[Spec, ...], tokens: range | None) -> list[range | None]:
    """The tokens that each stage must decode of the next stage's payload."""
    wanted: list[range | None] = []
    for stage, spec in zip(stages, specs[:-1], strict=True):
        wanted.append(tokens)
        tokens = None if tokens is None else stage.tokens_after(tokens, spec)
    return wanted


def _inputs(stages: tuple[Stage, ...], specs: tuple[Spec, ...], available: Payload) -> list[Payload]:
    """The inputs of each stage beyond its payload."""
    inputs: list[Payload] = []
    for stage, spec in zip(stages, specs[:-1], strict=True):
        inputs.append({name: available[name] for name in stage.needs & available.keys()})
        available = stage.inputs_after(available, spec)
    return inputs


def _error(
    stages: tuple[Stage, ...], specs: tuple[Spec, ...], payload: Payload, extra: Sequence[Payload]
) -> float:
    if not stages:
        return 0.0
    given = {**payload, **extra[0]}
    inner = _error(stages[1:], specs[1:], stages[0].encode(given, specs[0]), extra[1:])
    return stages[0].error(given, specs[0], inner)


def _check_finite(where: str, tensor: Tensor) -> None:
    finite = torch.isfinite(tensor)
    if not finite.all():
        head, token, channel = (~finite).nonzero()[0].tolist()
        value = tensor[head, token, channel].item()
        raise CodecError(f"{where}: {value} at token {token} (head {head}, channel {channel})")


def _array(tensor: Tensor) -> Array:
    if tensor.ndim != 3:
        raise unexpected("shape of a layer's tensor", list(tensor.shape), "[heads, tokens, channels]")
    return Array(tuple(tensor.shape), tensor.dtype)


def _label(place: Place) -> str:
    last = place.first + place.count - 1
    return f"layer {last}" if place.count == 1 else f"layers {place.first} to {last}"
