"""Calibration of the recipe ``klt``: the cost of errors, predictions from tokens, and a basis for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor

from kvtool.codecs.calibrate.principal import leading
from kvtool.codecs.calibrate.rows import cache_rows, gradient_rows
from kvtool.codecs.calibration import Calibration, Sample, entry, refuse_too_few
from kvtool.codecs.entropy_models import context
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.klt import prediction
from kvtool.codecs.klt.basis import Sizes, basis_of
from kvtool.codecs.klt.compact import compact_rows, rounded_rows
from kvtool.codecs.klt.eight_bits import compact_rows as in_eight_bits
from kvtool.codecs.klt.features import TABLE, compact_directions
from kvtool.codecs.klt.weights import Weights, compact_weights, whole_weights
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.deadzone import Deadzone
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Json, Spec

SINKS = 4
"""Positions that the stage ``sinks`` takes apart; they would bend a basis towards themselves."""

SHRINK = 0.1
"""Share of the mean sensitivity that is added to each channel's: few tokens are little evidence that errors are harmless."""

RANK = 1536
"""Components at most, by default; fewer where there are fewer tokens."""

SMALLEST = 0.008
"""Standard deviation below which a component is not kept; what is left out has a basis of its own for each layer."""

ROUNDED = 0.04
"""The squared error, in the loss, that rounding all matrices of a side may add to a token at most. A step of 0.075 adds
thirty times as much."""

TABLE_BYTES = 1 << 25
"""Bytes of the table of features, at most, where there is one."""

COARSEST = 1 / 20
"""Step of a complement's rows, at most: much coarser ones would no longer span all that is left out."""

STEPS, CODED = (0.01, 0.03, 0.07), 1 << 13
"""Steps at which codes are counted, and about how many tokens: a few numbers are learned from them, and soon."""


def fit(
    samples: Sequence[Sample],
    *,
    embedding: Tensor | None = None,
    embedding_digest: str | None = None,
    features: int = 512,
    rank: int | None = None,
    seed: int = 0,
) -> Calibration:
    """For keys and values of each run of layers of equal sizes: sensitivities, predictions, and a basis.

    A channel's sensitivity comes from the samples' gradients: F, the mean of g · gᵀ over tokens, a matrix for each
    layer. Rows are weighted by its root, so that an error's square says what it does to the loss; matrices are rounded by
    what their errors do. Of ``embedding`` [V, W], the model's own, ``features`` directions are kept. With its
    ``embedding_digest`` the calibration names it (``kvtool.codecs.klt.embeddings``); without, it holds a table of all tokens'
    features, of fewer where a vocabulary is large. At most ``rank`` components are kept, by default 1,536, those whose
    standard deviation is not too small. Samples without gradients count for the basis and the predictions alone.
    ``samples`` is gone through three times, and gradients are used the first time only, so it may be lazy. Raises
    CodecError for samples of several models, for gradients of fewer tokens than a layer has channels, and for fewer
    tokens than ``rank``.
    """
    learned = _Learned.of(samples)
    if rank is not None and learned.tokens < rank:
        raise CodecError(f"klt: rank {rank} needs at least {rank} tokens, here are {learned.tokens}")
    moments, covariances = learned.moments(embedding if features else None)
    facts: dict[str, Json] = {}
    bases: dict[str, Json] = {}
    tensors: dict[str, Tensor] = dict(learned.tensors)
    vocabulary = 0
    all_maps: dict[str, Tensor] = {}
    if moments is not None and embedding is not None:
        vocabulary = len(embedding)
        if embedding_digest is None:
            features = min(features, TABLE_BYTES // vocabulary)
        moments = moments.cut(prediction.directions(moments, features, learned.tokens))
        all_maps = {name: prediction.ridge(moments.seen, moments.crossed[name]) for name in learned.names}
        own, fact = _features(moments.embedded, all_maps, embedding_digest)
        tensors |= own
        facts |= fact
    for name, (group, _) in learned.names.items():
        left = covariances.pop(name)
        width = len(left)
        channels, most = width // len(group), min(rank or RANK, width, learned.tokens)
        n_features = 0 if moments is None else moments.embedded.directions.shape[1]
        step = (12 * ROUNDED / (width * (2 * n_features + most))) ** 0.5
        maps = all_maps.get(name, torch.zeros(0, width))
        if moments is not None:
            left = prediction.residual(left, moments.seen, moments.crossed[name], maps)
        left /= learned.tokens
        directions = leading(left, most, seed)
        deviation = ((directions @ left) * directions).sum(1).clamp(min=0).sqrt()
        kept = max(1, int((deviation > SMALLEST).sum()))
        bases[name] = asdict(Sizes(len(group), channels, kept, n_features, vocabulary))
        # No row is rounded to nothing.
        steps = (step / deviation[:kept].clamp(min=1e-30)).clamp(max=width**-0.5)
        tensors |= _under(name, _spanned(directions[:kept], steps, maps, step))
        tensors[f"{name}.mean"] = learned.means[name]
        tensors |= _under(name, learned.complement(left, directions[:kept], group, step))
    fitted = Calibration("klt", {"tokens": learned.tokens, "bases": bases, **facts}, tensors)
    return learned.with_statistics(fitted)


def _features(
    embedded: prediction.Embedded, maps: dict[str, Tensor], digest: str | None
) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Tensors and facts of the features of tokens: directions of an embedding that has a digest, or else a table."""
    if digest is None:
        every = torch.arange(len(embedded.embedding))
        return _under(TABLE, in_eight_bits(embedded.features(every))), {}
    halves = [half.square().sum(1) for of_side in maps.values() for half in of_side.chunk(2)]
    predicted = torch.stack(halves).sum(0)
    return compact_directions(embedded.mean, embedded.directions, predicted, digest, len(embedded.embedding))


def _spanned(basis: Tensor, steps: Tensor, maps: Tensor, step: float) -> dict[str, Tensor]:
    """Tensors of a basis [rank, width] and of the maps that predict: what of these it spans, and what it does not.

    It spans most, so that both take two thirds of the bits that the maps alone would.
    """
    by_row, rounded = torch.full((len(maps),), step), rounded_rows(basis, steps)
    spanned = maps @ rounded.mT
    rest = maps - rounded_rows(spanned, by_row) @ rounded
    return {
        **_under("basis", compact_rows(basis, steps)),
        **_under("spanned", compact_rows(spanned, by_row)),
        **_under("prediction", compact_rows(rest, by_row)),
    }


@dataclass
class _Learned:
    """Results of one pass after another over the samples. ``names`` are those of the bases: layers and side."""

    samples: Sequence[Sample]
    contents: list[Contents]
    names: dict[str, tuple[range, str]]
    tokens: int
    means: dict[str, Tensor]
    weights: dict[str, Weights]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Learned:
        """The first pass: means and sensitivities."""
        contents: list[Contents] = []
        names: dict[str, tuple[range, str]] = {}
        sums: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        tokens = sloped = 0
        for sample in samples:
            contents.append(Contents.of(sample.kv, Pipeline(layers=0)))
            after_sinks = _after_sinks(contents[-1])
            n = max(sample.kv.n_tokens - after_sinks.start, 0)
            tokens += n
            sloped += n if sample.gradients else 0
            for group in contents[-1].groups:
                for side in ("keys", "values"):
                    name = entry(group.start, side)
                    names.setdefault(name, (group, side))
                    rows = cache_rows(sample, contents[-1], group, side, after_sinks)
                    if name in sums and (len(sums[name]), names[name][0]) != (rows.shape[1], group):
                        raise CodecError("klt: samples are of several models; expected caches of one")
                    sums[name] = sums.get(name, 0) + rows.double().sum(0)
                    if sample.gradients:
                        slopes = gradient_rows(sample, contents[-1], group, side, after_sinks)
                        slopes = slopes.view(len(rows), len(group), rows.shape[1] // len(group))
                        square = torch.einsum("tlc,tld->lcd", slopes, slopes)
                        squares[name] = squares.get(name, 0) + square.double()
        channels = max((len(sums[name]) // len(group) for name, (group, _) in names.items()), default=1)
        refuse_too_few("klt", sloped, channels, "tokens with gradients")
        means = {name: (total / tokens).float() for name, total in sums.items()}
        tensors: dict[str, Tensor] = {}
        for name, square in squares.items():
            tensors |= _under(f"{name}.weights", compact_weights(_shrunk(square / sloped)))
        # As they will be read, so that coding and decoding take the same.
        held = Calibration("klt", {}, tensors)
        weights = {
            name: whole_weights(held, f"{name}.weights", *square.shape[:2])
            for name, square in squares.items()
        }
        return cls(samples, contents, names, tokens, means, weights, tensors)

    def moments(self, embedding: Tensor | None) -> tuple[prediction.Moments | None, dict[str, Tensor]]:
        """The second pass: how features and rows, weighted, go together; and the rows' second moments."""
        moments = None
        if embedding is not None:
            ids = torch.cat([sample.kv.token_ids for sample in self.samples])
            moments = prediction.Moments.none(prediction.Embedded.of(embedding, ids))
        covariances: dict[str, Tensor] = {}
        for sample, contents in zip(self.samples, self.contents, strict=True):
            after_sinks = _after_sinks(contents)
            features = None
            if moments is not None:
                features = moments.both(sample.kv.token_ids[after_sinks])
                moments.add(features)
            for name, (group, side) in self.names.items():
                rows = cache_rows(sample, contents, group, side, after_sinks) - self.means[name]
                rows = self.weights[name].apply(rows)
                if moments is not None and features is not None:
                    moments.cross(name, features, rows)
                square = rows.mT @ rows
                covariances[name] = covariances[name].add_(square) if name in covariances else square
        return moments, covariances

    @staticmethod
    def complement(covariance: Tensor, kept: Tensor, group: range, step: float) -> dict[str, Tensor]:
        """For each layer a basis [C, C] of what the components ``kept`` leave out, and all layers' common order.

        Across layers there is little left to gain, so a matrix is stored for each layer.
        """
        channels = len(covariance) // len(group)
        by_layer = kept.view(len(kept), len(group), channels)
        energy = ((kept @ covariance) * kept).sum(1)
        rows, variances = [], []
        for index in range(len(group)):
            part = slice(index * channels, (index + 1) * channels)
            own = by_layer[:, index]
            left = covariance[part, part] - own.mT @ (energy[:, None] * own)
            values, vectors = torch.linalg.eigh(left.double())
            rows.append(vectors.mT.float())
            variances.append(values)
        variance = torch.cat(variances).clamp(min=1e-30)
        # Rows are orthonormal, and must stay apart when they are rounded.
        steps = (step / variance.sqrt()).float().clamp(max=COARSEST)
        order = variance.argsort(descending=True, stable=True).to(torch.int32)
        return {**_under("complement", compact_rows(torch.cat(rows), steps)), "order": order}

    def with_statistics(self, fitted: Calibration) -> Calibration:
        """The third pass: statistics for the entropy coder (``kvtool.codecs.entropy_models.context``)."""
        sums = {name: torch.zeros(Sizes.of(fitted, name).components) for name in self.names}
        left_out = dict.fromkeys(self.names, 0.0)
        kept: dict[str, list[Tensor]] = {name: [] for name in self.names}
        tokens = 0
        for sample, contents in zip(self.samples, self.contents, strict=True):
            if tokens >= CODED:
                break
            after_sinks = _after_sinks(contents)
            tokens += max(sample.kv.n_tokens - after_sinks.start, 0)
            for name, (group, side) in self.names.items():
                basis = basis_of(fitted, name)
                rows = cache_rows(sample, contents, group, side, after_sinks)
                coefficients = basis.coefficients(rows, sample.kv.token_ids[after_sinks], whole=True)
                sums[name] += coefficients.abs().sum(0)
                # Rows of a complement are orthonormal under the weights.
                left_out[name] += coefficients[:, basis.sizes.rank :].square().sum().item()
                kept[name].append(coefficients.half())
        tensors = dict(fitted.tensors)
        total = torch.zeros(context.SHAPE, dtype=torch.int64)
        for name, parts in kept.items():
            eighths = 8 * (sums[name] / max(tokens, 1)).clamp(min=1e-30).log2()
            scales = (context.MIDDLE + eighths).round().clamp(0, 255).to(torch.uint8)
            before = context.Autoregression(len(scales))
            for codes, exponents, _ in _coded(parts):
                before.add(codes, exponents)
            weights = before.weights()
            for codes, exponents, step in _coded(parts):
                total += context.counts(codes, exponents, scales, weights, step)
            tensors |= _under(name, {"scales": scales, "autoregression": weights})
        means = {name: total / max(tokens, 1) for name, total in left_out.items()}
        tensors["tables"] = context.roots(total)
        return Calibration(fitted.method, {**fitted.facts, "left_out": means}, tensors)


def _coded(parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Codes [T, R], exponents [T] and the step, of each part at each step."""
    for coefficients in parts:
        for step in STEPS:
            stage, x = Deadzone(step=step), coefficients.float()
            coded = stage.encode({"x": x}, Spec.of(x))
            yield coded["codes"], coded["exponents"], step


def _after_sinks(contents: Contents) -> slice:
    return slice(max(SINKS - (contents.start or 0), 0), None)


def _shrunk(square: Tensor) -> Tensor:
    """Sensitivities [L, C, C] in which no channel is taken to be harmless."""
    mean = square.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    return (square + SHRINK * mean[:, None, None] * torch.eye(square.shape[1])).float()


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


@cache
def example() -> Calibration:
    """A small one: of layers 2 and 3, with 2 heads of 6 channels, for tests and golden files."""
    generator = torch.Generator().manual_seed(5)
    rope = {"rotations": [Rope((1.0, 0.1, 0.01)).to_json()], "rotation_of_layer": [0, 0]}

    def layers() -> tuple[LayerKV, ...]:
        draw = torch.randn(4, 2, 40, 6, generator=generator)
        return tuple(LayerKV(draw[2 * n], draw[2 * n + 1], torch.arange(9, 49)) for n in range(2))

    ids = torch.randint(0, 32, (40,), generator=generator)
    sample = Sample(KV(layers(), ids, rope), layers())
    fitted = fit([sample], embedding=torch.randn(32, 8, generator=generator), features=4, rank=16)
    # The basis of layers 0 and 1 becomes that of 2 and 3.
    moved = {name.replace("0000.", "0002."): tensor for name, tensor in fitted.tensors.items()}
    facts = json.loads(json.dumps(fitted.facts).replace("0000.", "0002."))
    return Calibration("klt", facts, moved)
