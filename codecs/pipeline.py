"""Stages in a row, for the keys and for the values of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.plan import Plan, plan_side, stored_name
from kvtool.codecs.registry import stage_from_config
from kvtool.codecs.stage import Array, Json, Payload, Spec, Stage


@dataclass(frozen=True)
class Pipeline:
    """``Prune* Transform* Quantize? Entropy`` on each side; a side without stages is stored as it is."""

    keys: tuple[Stage, ...] = ()
    values: tuple[Stage, ...] = ()

    def plan(self, keys: Array, values: Array) -> Plan:
        """Plan for keys [H, T, D] and values [H, T, Dv]. Raises CodecError, naming the stage at fault."""
        return Plan(plan_side("keys", self.keys, keys), plan_side("values", self.values, values))

    def encode_layer(self, layer: LayerKV, index: int | None = None) -> dict[str, Tensor]:
        """A layer's stored tensors, named and ordered as ``Plan.arrays``. ``index`` is for messages.

        Raises CodecError for NaN or infinity, with the layer and the token, and for what a stage refuses.
        """
        where = _label(index)
        plan = self.plan(_array(layer.keys), _array(layer.values))
        if plan.needs:
            raise CodecError(f"{where}: needs {', '.join(sorted(plan.needs))}, which is not given")
        stored: dict[str, Tensor] = {}
        sides = (
            ("keys", layer.keys, self.keys, plan.keys),
            ("values", layer.values, self.values, plan.values),
        )
        for side, tensor, stages, specs in sides:
            _check_finite(f"{where}: {side}", tensor)
            # Stages may rely on it; without any, a slice of a longer cache is stored as it lies, uncopied.
            payload: Payload = {"x": tensor.contiguous() if stages else tensor}
            for stage, (before, after) in zip(stages, pairwise(specs), strict=True):
                try:
                    payload = stage.encode(payload, before)
                except CodecError as error:
                    raise CodecError(f"{where}: {side}: {error}") from None
                after.check(payload, f"{where}: {side}: after stage {stage.name!r}")
            stored |= {stored_name(side, name): payload[name] for name in specs[-1].arrays}
        return stored

    def decode_layer(
        self,
        tensors: Mapping[str, Tensor],
        keys: Array,
        values: Array,
        positions: Tensor,
        index: int | None = None,
    ) -> LayerKV:
        """Undo ``encode_layer`` for a layer whose keys and values were as ``keys`` and ``values`` say.

        Names, dtypes and shapes are held against the plan before any content is read, so that nothing larger
        than planned is allocated. Raises CodecError, naming the tensor.
        """
        where = _label(index)
        plan = self.plan(keys, values)
        Spec(plan.arrays).check(tensors, where)
        decoded = []
        for side, stages, specs in (("keys", self.keys, plan.keys), ("values", self.values, plan.values)):
            payload: Payload = {name: tensors[stored_name(side, name)] for name in specs[-1].arrays}
            for stage, (before, after) in reversed(list(zip(stages, pairwise(specs), strict=True))):
                try:
                    payload = stage.decode(payload, before)
                except CodecError as error:
                    raise CodecError(f"{where}: {side}: {error}") from None
                # What is pruned stays pruned.
                expected = after if stage.kind == "prune" else before
                expected.check(payload, f"{where}: {side}: decoded by stage {stage.name!r}")
            decoded.append(payload["x"])
        return LayerKV(decoded[0], decoded[1], positions)

    def error(self, layer: LayerKV) -> tuple[float, float]:
        """The largest absolute error that a decoded key, and a decoded value, may show."""
        plan = self.plan(_array(layer.keys), _array(layer.values))
        return (
            _error(self.keys, plan.keys, {"x": layer.keys}),
            _error(self.values, plan.values, {"x": layer.values}),
        )

    def to_config(self) -> dict[str, Json]:
        return {
            "keys": [stage.to_config() for stage in self.keys],
            "values": [stage.to_config() for stage in self.values],
        }

    @classmethod
    def from_config(cls, config: Json) -> Pipeline:
        """The pipeline that ``to_config`` described. Raises CodecError, naming the stage and the field."""
        if not isinstance(config, Mapping) or config.keys() != {"keys", "values"}:
            raise CodecError(f"pipeline: is {str(config)[:80]}, expected an object of keys and values")
        sides = {side: _stages(side, config[side]) for side in ("keys", "values")}
        return cls(**sides)


def _stages(side: str, configs: Json) -> tuple[Stage, ...]:
    if not isinstance(configs, Sequence) or isinstance(configs, str):
        raise CodecError(f"pipeline: {side} is {str(configs)[:80]}, expected a list of stages")
    return tuple(stage_from_config(config) for config in configs)


def _error(stages: tuple[Stage, ...], specs: tuple[Spec, ...], payload: Payload) -> float:
    if not stages:
        return 0.0
    inner = _error(stages[1:], specs[1:], stages[0].encode(payload, specs[0]))
    return stages[0].error(payload, specs[0], inner)


def _check_finite(where: str, tensor: Tensor) -> None:
    finite = torch.isfinite(tensor)
    if not finite.all():
        head, token, channel = (~finite).nonzero()[0].tolist()
        value = tensor[head, token, channel].item()
        raise CodecError(f"{where}: {value} at token {token} (head {head}, channel {channel})")


def _array(tensor: Tensor) -> Array:
    if tensor.ndim != 3:
        raise CodecError(
            f"a layer's tensor has shape {list(tensor.shape)}, expected [heads, tokens, channels]"
        )
    return Array(tuple(tensor.shape), tensor.dtype)


def _label(index: int | None) -> str:
    return "layer" if index is None else f"layer {index}"
