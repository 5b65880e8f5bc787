"""Calibration of the recipe ``klt``: the cost of errors, predictions from tokens, and a basis for the rest.

No matrix has a side for every channel of every layer twice: time and memory grow with the model's width times the rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.calibrate.principal import principal
from kvtool.codecs.calibration import Calibration, Sample
from kvtool.codecs.errors import CodecError
from kvtool.codecs.klt import prediction
from kvtool.codecs.klt.basis import Sizes
from kvtool.codecs.klt.compact import compact_rows, rounded_rows
from kvtool.codecs.klt.eight_bits import compact_rows as in_eight_bits
from kvtool.codecs.klt.features import TABLE, compact_directions
from kvtool.codecs.klt.learned import Learned, second_moments
from kvtool.codecs.klt.statistics import with_statistics
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Json
from kvtool.kernels.threads import one_thread_each

RANK, WIDTH_FOR_RANK = 1536, 8
"""Components at most, by default, and of how many channels one more is; fewer where there are fewer tokens."""

SMALLEST = 0.008
"""Standard deviation below which a component is not kept; what is left out has a basis of its own for each layer."""

ROUNDED = 0.04
"""The squared error, in the loss, that rounding all matrices of a side may add to a token at most. A step of 0.075 adds
thirty times as much."""

TABLE_BYTES = 1 << 25
"""Bytes of the table of features, at most, where there is one."""

COARSEST = 1 / 20
"""Step of a complement's rows, at most: much coarser ones would no longer span all that is left out."""

OnStep: TypeAlias = Callable[[int, int], None]


def fit(
    samples: Sequence[Sample],
    *,
    embedding: Tensor | None = None,
    embedding_digest: str | None = None,
    features: int = 512,
    rank: int | None = None,
    seed: int = 0,
    on_step: OnStep = lambda done, total: None,
) -> Calibration:
    """For keys and values of each run of layers of equal sizes: sensitivities, predictions, and a basis.

    A channel's sensitivity comes from the samples' gradients: F, the mean of g · gᵀ over tokens, a matrix for each
    layer, to which each sample contributes alike. Rows are weighted by its root, so that an error's square says what it
    does to the loss; matrices are rounded by what their errors do. Of ``embedding`` [V, W], the model's own, ``features``
    directions are kept. With its ``embedding_digest`` the calibration names it (``kvtool.codecs.klt.embeddings``); without,
    it holds a table of all tokens' features, of fewer where a vocabulary is large. At most ``rank`` components are kept, by
    default 1,536 or an eighth of the channels of all layers, those whose standard deviation is not too small. Samples
    without gradients count for the basis and the predictions alone.

    ``samples`` is gone through several times, and gradients are used the first time only, so it may be lazy. From then on
    ``on_step`` gets the steps that are done, and how many there are. Raises CodecError for samples of several models, for
    gradients of fewer tokens than a layer has channels, and for fewer tokens than ``rank``.
    """
    learned = Learned.of(samples)
    if rank is not None and learned.tokens < rank:
        raise CodecError(f"klt: rank {rank} needs at least {rank} tokens, here are {learned.tokens}")
    steps = _Steps(2 + 2 * len(learned.groups), on_step)
    tensors, facts = dict(learned.tensors), dict[str, Json]()
    bases: dict[str, Json] = {}
    predicted: _Prediction | None = None
    if embedding is not None and features:
        if embedding_digest is None:
            features = min(features, TABLE_BYTES // len(embedding))
        predicted = _Prediction.by(embedding, learned, features)
        own, facts = _features(predicted, embedding_digest)
        tensors |= own
    steps.advance()
    for name, (group, _) in learned.groups.items():
        residuals = _Residuals(learned, name, predicted)
        width = len(learned.means[name])
        most = min(rank or components_at_most(width), learned.tokens, width)
        directions = principal(residuals, width, most, seed)
        steps.advance()
        variance, by_layer = residuals.moments(directions)
        deviation = variance.sqrt()
        kept = max(1, int((deviation > SMALLEST).sum()))
        predicting = 0 if predicted is None else len(predicted.maps[name])
        vocabulary = 0 if predicted is None else len(predicted.embedded.embedding)
        bases[name] = asdict(Sizes(len(group), width // len(group), kept, predicting // 2, vocabulary))
        step = (12 * ROUNDED / (width * (predicting + most))) ** 0.5
        # No row is rounded to nothing.
        by_row = (step / deviation[:kept].clamp(min=1e-30)).clamp(max=width**-0.5)
        tensors |= _under(name, _spanned(directions[:kept], by_row, residuals.maps, step))
        tensors[f"{name}.mean"] = learned.means[name]
        tensors |= _under(name, _complement(by_layer, directions[:kept], variance[:kept], step))
        steps.advance()
    fitted = Calibration("klt", {"tokens": learned.tokens, "bases": bases, **facts}, tensors)
    fitted = with_statistics(fitted, learned)
    steps.advance()
    return fitted


def components_at_most(width: int) -> int:
    """Of a basis over ``width`` channels, unless ``fit`` is told otherwise."""
    return min(max(RANK, width // WIDTH_FOR_RANK), width)


@dataclass
class _Steps:
    """Steps, about equally long, of which ``done`` are."""

    total: int
    report: OnStep
    done: int = 0

    def advance(self) -> None:
        self.done += 1
        self.report(self.done, self.total)


@dataclass(frozen=True)
class _Prediction:
    """What tokens predict: ``maps`` [2 · features, width] of each basis, from ``embedded`` tokens."""

    embedded: prediction.Embedded
    maps: dict[str, Tensor]

    @classmethod
    def by(cls, embedding: Tensor, learned: Learned, features: int) -> _Prediction:
        moments = prediction.Moments.of(embedding, learned)
        moments = moments.cut(prediction.directions(moments, features, learned.tokens))
        maps = {name: prediction.ridge(moments.seen, crossed) for name, crossed in moments.crossed.items()}
        return cls(moments.embedded, maps)


@dataclass(frozen=True)
class _Residuals:
    """What tokens do not predict of one basis's rows, weighted: [T, width] of each sample, again each time."""

    learned: Learned
    name: str
    predicted: _Prediction | None

    @property
    def maps(self) -> Tensor:
        if self.predicted is None:
            return torch.zeros(0, len(self.learned.means[self.name]))
        return self.predicted.maps[self.name]

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.learned.weighted(self.name):
            if self.predicted is not None:
                part.rows.addmm_(self.predicted.embedded.both(part.token_ids), self.maps, alpha=-1)
            yield part.rows

    def moments(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Means over tokens: of squares along ``directions``, and of each layer's outer products [L, C, C]."""
        layers = len(self.learned.groups[self.name][0])
        variance = torch.zeros(len(directions))
        by_layer = torch.zeros(layers, directions.shape[1] // layers, directions.shape[1] // layers)
        for rows in self:
            variance += (rows @ directions.mT).square().sum(0)
            by_layer += second_moments(rows, layers)
        return variance / self.learned.tokens, by_layer / self.learned.tokens


def _features(predicted: _Prediction, digest: str | None) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Tensors and facts of the features of tokens: directions of an embedding that has a digest, or else a table."""
    embedded = predicted.embedded
    if digest is None:
        every = torch.arange(len(embedded.embedding))
        return _under(TABLE, in_eight_bits(embedded.features(every))), {}
    halves = [half.square().sum(1) for maps in predicted.maps.values() for half in maps.chunk(2)]
    variance = torch.stack(halves).sum(0)
    return compact_directions(embedded.mean, embedded.directions, variance, digest, len(embedded.embedding))


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


def _complement(by_layer: Tensor, kept: Tensor, variance: Tensor, step: float) -> dict[str, Tensor]:
    """For each layer a basis [C, C] of what the components ``kept`` [R, L · C] leave out, and all layers' common order.

    ``by_layer`` [L, C, C] are second moments, ``variance`` [R] those along ``kept``. Across layers there is little left to
    gain, so a matrix is stored for each layer.
    """

    def decomposed(moments: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        left = moments - own.mT @ (variance[:, None] * own)
        values, vectors = torch.linalg.eigh(left.double())
        return values, vectors.mT.float()

    kept_by_layer = kept.view(len(kept), *by_layer.shape[:2]).unbind(1)
    variances, rows = zip(*one_thread_each(decomposed, by_layer, kept_by_layer), strict=True)
    ordered = torch.cat(variances).clamp(min=1e-30)
    # Rows are orthonormal, and must stay apart when they are rounded.
    steps = (step / ordered.sqrt()).float().clamp(max=COARSEST)
    order = ordered.argsort(descending=True, stable=True).to(torch.int32)
    return {**_under("complement", compact_rows(torch.cat(rows), steps)), "order": order}


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
