"""One segment's keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerKV:
    """One layer of one segment.

    ``keys`` is ``[H, T, D]`` with RoPE applied at ``positions`` (``[T]``, int64); ``values`` is
    ``[H, T, Dv]``. ``D`` and ``Dv`` may differ (latent caches), and so may layers among themselves.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor

    @property
    def n_elements(self) -> int:
        return self.keys.numel() + self.values.numel()

    def of(self, tokens: range) -> LayerKV:
        """These tokens alone, as views."""
        some = slice(tokens.start, tokens.stop)
        return LayerKV(self.keys[:, some], self.values[:, some], self.positions[some])


@dataclass(frozen=True)
class KV:
    """One segment's keys and values, layer by layer, without the prefix it was prefilled under.

    ``token_ids`` is ``[T]`` (int64). ``rope`` is the model's RoPE parameters as JSON values, which transforms
    need to undo the rotation of keys.
    """

    layers: tuple[LayerKV, ...]
    token_ids: Tensor
    rope: Mapping[str, Any] = field(default_factory=dict)

    def of(self, tokens: range) -> KV:
        """These tokens alone, as views."""
        layers = tuple(layer.of(tokens) for layer in self.layers)
        return KV(layers, self.token_ids[tokens.start : tokens.stop], self.rope)

    @property
    def n_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def n_elements(self) -> int:
        """Number of key and value elements, the denominator of bits per value."""
        return sum(layer.n_elements for layer in self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].keys.dtype
