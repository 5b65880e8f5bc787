"""Keys and values of a cache, layer by layer, as the blocks of an engine take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.artifact.load import refuse_gaps
from kvtool.artifact.read import Artifact
from kvtool.codecs.rope import Rope, value_ropes
from kvtool.errors import MismatchError


@dataclass(frozen=True)
class LayerSpan:
    """One layer's ``keys`` [H, T, D] and ``values`` [H, T, Dv] of the tokens from position ``start`` on.

    In latent attention (MLA) the keys are the latent [1, T, R], and the values the rotated part [1, T, P]. ``value_rope`` says
    how that was rotated, where the artifact does.
    """

    layer: int
    start: int
    keys: Tensor
    values: Tensor
    value_rope: Rope | None = None

    @property
    def stop(self) -> int:
        return self.start + self.keys.shape[1]

    def interleaved_values(self) -> Tensor:
        """The rotated part of latent attention, [1, T, P], with the pairs of channels that turn together side by side.

        Raises ``MismatchError`` where the artifact does not say how it was rotated.
        """
        rope, half = self.value_rope, self.values.shape[-1] // 2
        if rope is None or rope.start or len(rope.inv_freq) != half:
            reason = "does not say how the cache's values were rotated"
            raise MismatchError(f"layer {self.layer}", reason, "prefill again with this kvtool")
        if rope.layout == "interleaved":
            return self.values
        return torch.stack((self.values[..., :half], self.values[..., half:]), -1).flatten(-2)


@dataclass(frozen=True)
class Step:
    """Some layers of one artifact, which are read, checked and decoded together.

    ``tokens`` counts within the artifact, whose first token is at position ``start``.
    """

    part: Artifact
    start: int
    layers: range
    tokens: range

    def spans(self) -> list[LayerSpan]:
        """Raises ``ArtifactError`` for bytes that are not what was written."""
        is_whole = self.tokens == range(self.part.contents.geometry.n_tokens)
        decoded = self.part.group(self.layers, None if is_whole else self.tokens)
        contents = self.part.contents
        ropes = value_ropes(contents.rope, len(contents.geometry.layers))
        return [
            LayerSpan(
                index,
                self.start + self.tokens.start,
                layer.keys,
                layer.values,
                ropes[index] if ropes else None,
            )
            for index, layer in zip(self.layers, decoded, strict=True)
        ]


def steps(parts: Sequence[Artifact], tokens: range) -> list[Step]:
    """What gives all keys and values of the positions ``tokens``, first layers first.

    ``parts`` are a prefix and a segment, or a segment alone. Raises ``MismatchError`` if they do not follow each other, or if
    one of them has lost tokens.
    """
    refuse_gaps(parts)
    for part in parts:
        if part.contents.geometry.is_pruned:
            raise MismatchError(part.path, "has lost tokens, and an engine's blocks hold every one")
    return sorted(_steps(parts, tokens), key=lambda step: (step.layers.start, step.start))


def _steps(parts: Sequence[Artifact], tokens: range) -> Iterator[Step]:
    start = 0
    for part in parts:
        size = part.contents.geometry.n_tokens
        inside = range(max(tokens.start - start, 0), min(tokens.stop - start, size))
        if inside:
            yield from (Step(part, start, group, inside) for group in part.contents.groups)
        start += size
