"""Rotations of a model's keys: read from the model, and confirmed by running it.

No model-specific code. The frequencies are those of the model's own rotary modules. Which layer uses which, on which
channels and paired how, is tried out. A single token attends to nothing but itself, so its state is the same at every
position, and each layer's key at position p must be its key at position 0, rotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kvtool.codecs.rope import Rope, described, turn
from kvtool.engines.transformers import device_of, new_cache
from kvtool.kernels import dispatch
from kvtool.model.model import Model

FAR = 1000
"""The furthest position that is tried: there the lowest frequencies turn by more than rounding explains."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""The largest difference, relative to the norm, between a layer's keys and the rotation that explains them."""


@dataclass(frozen=True)
class Rotations:
    """How each layer's keys and values are rotated; ``Rope(())`` where they are not."""

    keys: tuple[Rope, ...]
    values: tuple[Rope, ...]

    @property
    def up_to(self) -> int | None:
        """The position from which on some layer rotates otherwise; None if there is no such position."""
        limits = (rope.up_to for rope in (*self.keys, *self.values) if rope.up_to is not None)
        return min(limits, default=None)


def describe_rotations(model: Model) -> dict[str, Any]:
    """``rotations``, the different ``Rope.to_json``, and ``rotation_of_layer``, an index for each layer.

    Empty for a model without rotary embeddings, and for one with a layer whose keys no rotation explains. Where no keys are
    rotated, the same of values: in latent attention (MLA) transformers keeps the latent, which is not rotated, as keys, and
    the small rotated part as values.
    """
    keys = _ropes(model, "keys")
    if not keys:
        return {}
    values = () if any(rope.inv_freq for rope in keys) else _ropes(model, "values")
    return {**described(keys), **(described(values, of_values=True) if values else {})}


def find_rotations(model: Model) -> Rotations | None:
    """The rotations of keys and values: all that a token's cache owes to its position, attention aside.

    None where some layer's could not be found.
    """
    keys, values = _ropes(model, "keys"), _ropes(model, "values")
    return Rotations(keys, values) if keys and values else None


def moved(x: Tensor, rope: Rope, by: int) -> Tensor:
    """Keys (in latent attention, values) ``x`` [H, T, D], rotated as at ``by`` positions further on, as new float32."""
    out = x.to(torch.float32, copy=True)
    return turn(out, rope, torch.full((x.shape[1],), by))


def _ropes(model: Model, side: Literal["keys", "values"]) -> tuple[Rope, ...]:
    """A rotation for each layer; empty if some layer's is not found."""
    frequencies = list(_frequencies(model.model))
    limits = [rope.up_to for rope in frequencies if rope.up_to is not None]
    positions = torch.tensor([0, 3, min(FAR, model.context, *limits) - 1])
    ropes: list[Rope] = []
    # A forward that knows no position_ids raises one of these.
    with suppress(TypeError, ValueError, IndexError, RuntimeError):
        for states in _states(model, side, positions) if frequencies else ():
            # Some models have layers without positions between the others.
            candidates = (*_candidates(frequencies, states.shape[-1]), Rope(()))
            misfits = {rope: _misfit(rope, states, positions) for rope in candidates}
            best = min(misfits, key=lambda rope: misfits[rope])
            if not misfits[best] < TOLERANCE[model.dtype]:
                return ()
            ropes.append(best)
    return tuple(ropes)


def _frequencies(module: Any) -> Iterator[Rope]:
    """The rotation of each rotary module, at positions where it uses one set of frequencies."""
    for rotary in module.modules():
        for name, buffer in rotary.named_buffers(recurse=False):
            prefix = name.removesuffix("inv_freq")
            if prefix == name or prefix.endswith("original_"):
                continue
            # Where scaling depends on the length, the buffer itself is that of the last forward.
            frequencies = getattr(rotary, f"{prefix}original_inv_freq", buffer)
            scaling = getattr(rotary, f"{prefix}attention_scaling", 1.0)
            up_to = _up_to(rotary, prefix.rstrip("_"))
            yield Rope(tuple(frequencies.float().tolist()), float(scaling), up_to=up_to)


def _up_to(rotary: Any, layer_type: str) -> int | None:
    """The position from which on a rotary module uses other frequencies."""
    kind: Any = getattr(rotary, "rope_type", "default")
    parameters: Any = getattr(getattr(rotary, "config", None), "rope_parameters", None) or {}
    if isinstance(kind, dict):
        kind, parameters = kind.get(layer_type), parameters.get(layer_type)
    if kind == "dynamic":
        # One less than the config says: after a longer forward, one to the very last position does not reset the module.
        return int(rotary.original_max_seq_len) - 1
    return int(parameters["original_max_position_embeddings"]) if kind == "longrope" else None


@torch.no_grad()
def _states(model: Model, side: str, positions: Tensor) -> list[Tensor]:
    """Each layer's keys or values [N, H, D] of one and the same token, alone at each of ``positions`` [N]."""
    cache = new_cache(model, 1)
    device = device_of(model)
    # Any token will do except the padding token, which may be all zeros.
    ids = torch.full((len(positions), 1), model.text_config.vocab_size // 2, device=device)
    model.model.base_model(
        input_ids=ids, position_ids=positions[:, None].to(device), past_key_values=cache, use_cache=True
    )
    return [getattr(layer, side)[:, :, 0].float().cpu() for layer in cache.layers]


def _candidates(frequencies: list[Rope], channels: int) -> Iterator[Rope]:
    for rope in frequencies:
        size = 2 * len(rope.inv_freq)
        for start in dict.fromkeys((0, channels - size)) if size <= channels else ():
            for layout in get_args(dispatch.Layout):
                yield Rope(rope.inv_freq, rope.scaling, layout, start, rope.up_to)


def _misfit(rope: Rope, states: Tensor, positions: Tensor) -> float:
    """How far ``states`` [N, H, D] are from the rotation of the first, which is at position 0."""
    # What is scaled is scaled at position 0 too.
    expected = turn(states[:1].expand_as(states).transpose(0, 1).contiguous(), rope, positions)
    return float((expected.transpose(0, 1) - states).norm() / states.norm())
