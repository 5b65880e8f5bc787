"""What the first pass over samples gives ``klt``: means, what errors cost, and rows under these weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.calibrate.rows import cache_rows, gradient_rows
from kvtool.codecs.calibration import Calibration, Sample, entry, refuse_too_few
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.klt.weights import Weights, compact_weights, whole_weights
from kvtool.codecs.pipeline import Pipeline

SINKS = 4
"""Positions that the stage ``sinks`` takes apart; they would bend a basis towards themselves."""

SHRINK = 0.1
"""Share of the mean sensitivity that is added to each channel's: few tokens are little evidence that errors are harmless."""


@dataclass(frozen=True)
class Part:
    """A sample's ``rows`` [T, width] float32 of one basis, and its tokens, both after the sinks."""

    token_ids: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Learned:
    """Results of the first pass. ``groups`` are those of the bases, by name: layers and side."""

    samples: Sequence[Sample]
    contents: Sequence[Contents]
    groups: dict[str, tuple[range, str]]
    tokens: int
    means: dict[str, Tensor]
    weights: dict[str, Weights]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Learned:
        """Raises CodecError for samples of several models, and for gradients of fewer tokens than a layer has channels."""
        contents: list[Contents] = []
        groups: dict[str, tuple[range, str]] = {}
        sums: dict[str, Tensor] = {}
        sensitivities = _Sensitivities({}, [])
        tokens = 0
        for sample in samples:
            contents.append(Contents.of(sample.kv, Pipeline(layers=0)))
            after = after_sinks(contents[-1])
            n = max(sample.kv.n_tokens - after.start, 0)
            tokens += n
            own: dict[str, Tensor] = {}
            for group in contents[-1].groups:
                for side in ("keys", "values"):
                    name = entry(group.start, side)
                    groups.setdefault(name, (group, side))
                    rows = cache_rows(sample, contents[-1], group, side, after)
                    if name in sums and (len(sums[name]), groups[name][0]) != (rows.shape[1], group):
                        raise CodecError("klt: samples are of several models; expected caches of one")
                    sums[name] = sums.get(name, 0) + rows.double().sum(0)
                    if sample.gradients:
                        slopes = gradient_rows(sample, contents[-1], group, side, after)
                        own[name] = second_moments(slopes, len(group)).double()
            if own:
                sensitivities.add(own, n)
        channels = max((len(sums[name]) // len(group) for name, (group, _) in groups.items()), default=1)
        refuse_too_few("klt", sensitivities.tokens, channels, "tokens with gradients")
        tensors: dict[str, Tensor] = {}
        for name, square in sensitivities.means().items():
            parts = compact_weights(_shrunk(square))
            tensors |= {f"{name}.weights.{part}": tensor for part, tensor in parts.items()}
        # As they will be read, so that coding and decoding take the same.
        held = Calibration("klt", {}, tensors)
        weights = {
            name: whole_weights(held, f"{name}.weights", len(group), len(sums[name]) // len(group))
            for name, (group, _) in groups.items()
        }
        means = {name: (total / tokens).float() for name, total in sums.items()}
        return cls(samples, contents, groups, tokens, means, weights, tensors)

    def parts(self, name: str) -> Iterator[Part]:
        """Each sample's rows as they are."""
        group, side = self.groups[name]
        for sample, contents in zip(self.samples, self.contents, strict=True):
            after = after_sinks(contents)
            yield Part(sample.kv.token_ids[after], cache_rows(sample, contents, group, side, after))

    def weighted(self, name: str) -> Iterator[Part]:
        """Each sample's rows, centred, where an error's square is what it costs."""
        for part in self.parts(name):
            yield Part(part.token_ids, self.weights[name].apply(part.rows - self.means[name]))


def after_sinks(contents: Contents) -> slice:
    """The tokens whose positions the stage ``sinks`` does not take apart."""
    return slice(max(SINKS - (contents.start or 0), 0), None)


def second_moments(rows: Tensor, layers: int) -> Tensor:
    """Sums over rows [T, layers · C] of each layer's outer products, [layers, C, C]."""
    by_layer = rows.view(len(rows), layers, rows.shape[1] // layers).transpose(0, 1)
    return by_layer.mT @ by_layer


@dataclass
class _Sensitivities:
    """Sums over texts of slopes' outer products [L, C, C], by basis, each text's divided by its mean ``powers``.

    So each counts as much as any other: slopes are ten times as large in some.
    """

    squares: dict[str, Tensor]
    powers: list[float]
    tokens: int = 0

    def add(self, squares: dict[str, Tensor], tokens: int) -> None:
        traces = sum(float(square.diagonal(dim1=1, dim2=2).sum()) for square in squares.values())
        power = max(traces / max(tokens, 1), 1e-30)
        for name, square in squares.items():
            self.squares[name] = self.squares.get(name, 0) + square / power
        self.powers.append(power)
        self.tokens += tokens

    def means(self) -> dict[str, Tensor]:
        """Over tokens, on the scale of a text as they usually are."""
        usual = math.exp(sum(map(math.log, self.powers)) / len(self.powers))
        return {name: square * usual / self.tokens for name, square in self.squares.items()}


def _shrunk(square: Tensor) -> Tensor:
    """Sensitivities [L, C, C] in which no channel is taken to be harmless."""
    mean = square.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    return (square + SHRINK * mean[:, None, None] * torch.eye(square.shape[1])).float()
