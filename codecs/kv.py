"""One segment's keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerKV:
    """One layer of one segment.

    ``keys`` is ``[H, T, D]`` with RoPE applied at ``positions`` (``[T]``, int64); ``values`` is
    ``[H, T, Dv]``. ``D`` and ``Dv`` may differ (latent caches), and so may layers among themselves.

    Where heads hold different tokens, ``lengths`` has the number of each, and the layer is packed: the N tokens of all heads,
    head after head, are ``keys`` ``[1, N, D]``, ``values`` ``[1, N, Dv]`` and ``positions`` ``[N]``.

    ``bias``, float32 of the first two axes of ``keys``, is added to the scaled scores of each token; None adds nothing. It is
    stored with 16 bits.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    lengths: tuple[int, ...] | None = None
    bias: Tensor | None = None

    @property
    def n_elements(self) -> int:
        return self.keys.numel() + self.values.numel()

    @property
    def n_heads(self) -> int:
        return self.keys.shape[0] if self.lengths is None else len(self.lengths)

    def of(self, tokens: range) -> LayerKV:
        """These tokens alone, as views; of a packed layer, these of the N."""
        some = slice(tokens.start, tokens.stop)
        bias = None if self.bias is None else self.bias[..., some]
        return LayerKV(self.keys[:, some], self.values[:, some], self.positions[some], bias=bias)

    def heads(self) -> Iterator[LayerKV]:
        """Each head's tokens, as a layer of one head, as views."""
        if self.lengths is None:
            for head in range(self.n_heads):
                bias = None if self.bias is None else self.bias[head : head + 1]
                yield LayerKV(
                    self.keys[head : head + 1], self.values[head : head + 1], self.positions, bias=bias
                )
            return
        end = 0
        for length in self.lengths:
            start, end = end, end + length
            yield self.of(range(start, end))


@dataclass(frozen=True)
class KV:
    """One segment's keys and values, layer by layer, without the prefix it was prefilled under.

    ``token_ids`` is ``[T]`` (int64). ``rope`` is the model's RoPE parameters as JSON values, which transforms
    need to undo the rotation of keys. ``start`` is the position of the first token; it may be None where every layer holds
    all tokens.
    """

    layers: tuple[LayerKV, ...]
    token_ids: Tensor
    rope: Mapping[str, Any] = field(default_factory=dict)
    start: int | None = None

    def of(self, tokens: range) -> KV:
        """These tokens alone, as views. Only where every layer holds all tokens."""
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
