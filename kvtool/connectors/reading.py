"""Keys and values of a cache, layer by layer, as the blocks of an engine take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.artifact.load import refuse_gaps
from kvtool.artifact.read import Artifact
from kvtool.codecs.rope import Rope, value_ropes
from kvtool.errors import MismatchError

CHUNK = 1024
"""Tokens that klt's coder decodes together: a piece that has some of them decodes them all."""


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


def steps(parts: Sequence[Artifact], tokens: range, threads: int = 1) -> list[Step]:
    """What gives all keys and values of the positions ``tokens``, first layers first.

    ``parts`` are a prefix and a segment, or a segment alone. Layers that are coded together are split by tokens, where that keeps
    more of ``threads`` busy. Raises ``MismatchError`` if the parts do not follow each other, or if one of them has lost tokens.
    """
    refuse_gaps(parts)
    for part in parts:
        if part.contents.geometry.is_pruned:
            raise MismatchError(part.path, "has lost tokens, and an engine's blocks hold every one")
    return sorted(
        _steps(parts, tokens, threads), key=lambda step: (step.layers.start, step.start, step.tokens.start)
    )


def _steps(parts: Sequence[Artifact], tokens: range, threads: int) -> Iterator[Step]:
    start = 0
    for part in parts:
        size, groups = part.contents.geometry.n_tokens, part.contents.groups
        inside = range(max(tokens.start - start, 0), min(tokens.stop - start, size))
        if inside:
            pieces = split(inside, -(-threads // len(groups)))
            yield from (Step(part, start, group, piece) for group in groups for piece in pieces)
        start += size


def split(tokens: range, pieces: int) -> list[range]:
    """``tokens`` in as many pieces at most, of about the same size, cut at multiples of ``CHUNK``."""
    cuts = {(tokens.start + len(tokens) * n // pieces) // CHUNK * CHUNK for n in range(1, pieces)}
    bounds = [tokens.start, *sorted(cut for cut in cuts if tokens.start < cut < tokens.stop), tokens.stop]
    return [range(*pair) for pair in pairwise(bounds)]
