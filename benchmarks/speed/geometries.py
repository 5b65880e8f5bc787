"""Sizes of the caches of models that people run, and of the weights that a prefill multiplies by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Heads and their channels of ``layers``; ``parameters`` are those that each token is multiplied by."""

    layers: int
    heads: int
    key_channels: int
    value_channels: int
    parameters: float

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of all layers: of keys, and of values."""
        return (
            self.layers * self.heads * self.key_channels,
            self.layers * self.heads * self.value_channels,
        )

    @property
    def raw_bytes(self) -> int:
        """Of a token, in 16 bits."""
        return 2 * sum(self.widths)


GEOMETRIES: Mapping[str, Geometry] = {
    "smollm2-135m": Geometry(30, 3, 64, 64, 0.135e9),
    "qwen3-0.6b": Geometry(28, 8, 128, 128, 0.6e9),
    "qwen3-4b": Geometry(36, 8, 128, 128, 4.0e9),
    "qwen3-8b": Geometry(36, 8, 128, 128, 8.2e9),
    "qwen3-32b": Geometry(64, 8, 128, 128, 32.8e9),
    "llama-3.1-8b": Geometry(32, 8, 128, 128, 8.0e9),
    "llama-3.1-70b": Geometry(80, 8, 128, 128, 70.6e9),
    # One latent of 512 channels for all heads, and 64 of a key that are rotated; 37 billion parameters are active.
    "deepseek-v3": Geometry(61, 1, 512, 64, 37e9),
}
