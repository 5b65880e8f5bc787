"""How a model rotates its keys, found in the model and held against what it computes.

No model-specific code: the frequencies are those of the model's own rotary modules, and which layer uses which, on
which channels, paired how, is tried out. The state of a single token attends to nothing but itself, so it is the
same at every position, and the key of each layer at position p must be its key at position 0, rotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from kvtool.codecs.rope import Rope, turn
from kvtool.kernels import dispatch

if TYPE_CHECKING:
    from kvtool.model.model import Model

FAR = 1000
"""The furthest position that is tried: there the lowest frequencies turn by what rounding does not explain."""

# Largest difference, relative to the norm, between a layer's keys and the rotation that explains them.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Turned:
    """How each layer's keys and values are rotated; ``Rope(())`` where they are not."""

    keys: tuple[Rope, ...]
    values: tuple[Rope, ...]

    @property
    def up_to(self) -> int | None:
        """The position from which on some of them are rotated otherwise."""
        return min(
            (rope.up_to for rope in (*self.keys, *self.values) if rope.up_to is not None), default=None
        )


def rotations(model: Model) -> dict[str, Any]:
    """``rotations``, the different ``Rope.to_json``, and ``rotation_of_layer``, an index for each layer.

    Empty for a model that has no rotary embeddings, and for one with a layer whose keys none of them explains.
    Only keys are spoken of: in latent attention (MLA) transformers keeps the latent as keys, which no angles turn,
    and the small rotated part as values.
    """
    ropes = _explained(model, "keys")
    different = list(dict.fromkeys(ropes))
    return (
        {
            "rotations": [rope.to_json() for rope in different],
            "rotation_of_layer": [different.index(rope) for rope in ropes],
        }
        if ropes
        else {}
    )


def turned(model: Model) -> Turned | None:
    """What ``rotations`` finds, of values too: all that depends on where a token stands but what it attends to."""
    keys, values = _explained(model, "keys"), _explained(model, "values")
    return Turned(keys, values) if keys and values else None


def moved(x: Tensor, rope: Rope, by: int) -> Tensor:
    """Keys (or values, in latent attention) ``x`` [H, T, D] turned by what lies between two places, as new float32."""
    out = x.to(torch.float32, copy=True)
    return turn(out, rope, torch.full((x.shape[1],), by))


def _explained(model: Model, side: Literal["keys", "values"]) -> tuple[Rope, ...]:
    """A rotation for each layer; none if there is one that none explains."""
    found = list(_frequencies(model.model))
    limits = [rope.up_to for rope in found if rope.up_to is not None]
    positions = torch.tensor([0, 3, min(FAR, model.context, *limits) - 1])
    ropes: list[Rope] = []
    # A forward that knows no position_ids raises one of these.
    with suppress(TypeError, ValueError, IndexError, RuntimeError):
        for states in _states(model, side, positions) if found else ():
            # Layers without positions, between others, are rotated by no angles.
            fits = {
                rope: _misfit(rope, states, positions)
                for rope in (*_candidates(found, states.shape[-1]), Rope(()))
            }
            best = min(fits, key=lambda rope: fits[rope])
            if not fits[best] < TOLERANCE[model.dtype]:
                return ()
            ropes.append(best)
    return tuple(ropes)


def _frequencies(module: Any) -> Iterator[Rope]:
    """What each rotary module turns by, at positions where the model turns by one set of frequencies."""
    for rotary in module.modules():
        for name, buffer in rotary.named_buffers(recurse=False):
            prefix = name.removesuffix("inv_freq")
            if prefix == name or prefix.endswith("original_"):
                continue
            # The buffer itself is that of the last forward, where scaling depends on the length.
            frequencies = getattr(rotary, f"{prefix}original_inv_freq", buffer)
            scaling = getattr(rotary, f"{prefix}attention_scaling", 1.0)
            yield Rope(
                tuple(frequencies.float().tolist()), float(scaling), up_to=_up_to(rotary, prefix.rstrip("_"))
            )


def _up_to(rotary: Any, layer_type: str) -> int | None:
    """The position from which on a rotary module turns by other frequencies."""
    kind: Any = getattr(rotary, "rope_type", "default")
    parameters: Any = getattr(getattr(rotary, "config", None), "rope_parameters", None) or {}
    if isinstance(kind, dict):
        kind, parameters = kind.get(layer_type), parameters.get(layer_type)
    if kind == "dynamic":
        # One less than said: after a longer forward, one to the very last position does not reset the module.
        return int(rotary.original_max_seq_len) - 1
    return int(parameters["original_max_position_embeddings"]) if kind == "longrope" else None


@torch.no_grad()
def _states(model: Model, side: str, positions: Tensor) -> list[Tensor]:
    """Each layer's keys or values [N, H, D] of one and the same token, alone at each of ``positions`` [N]."""
    from kvtool.engines.transformers import device_of, grouped_attention, new_cache

    cache = new_cache(model, 1)
    device = device_of(model)
    # Any token will do, but for the one that pads, which may be all zeros.
    ids = torch.full((len(positions), 1), model.text_config.vocab_size // 2, device=device)
    with grouped_attention(model):
        model.model.base_model(
            input_ids=ids, position_ids=positions[:, None].to(device), past_key_values=cache, use_cache=True
        )
    return [getattr(layer, side)[:, :, 0].float().cpu() for layer in cache.layers]


def _candidates(found: list[Rope], channels: int) -> Iterator[Rope]:
    for rope in found:
        size = 2 * len(rope.inv_freq)
        for start in dict.fromkeys((0, channels - size)) if size <= channels else ():
            for layout in get_args(dispatch.Layout):
                yield Rope(rope.inv_freq, rope.scaling, layout, start, rope.up_to)


def _misfit(rope: Rope, states: Tensor, positions: Tensor) -> float:
    """How far ``states`` [N, H, D] are from the rotation of the first, which is at position 0."""
    # What is scaled is scaled at position 0 too.
    expected = turn(states[:1].expand_as(states).transpose(0, 1).contiguous(), rope, positions)
    return float((expected.transpose(0, 1) - states).norm() / states.norm())
