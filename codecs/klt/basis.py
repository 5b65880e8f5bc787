"""The basis of ``klt``, read from its calibration: predictions, directions, and the cost of errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy_models.context import MIDDLE
from kvtool.codecs.errors import CodecError, unexpected
from kvtool.codecs.klt import compact, eight_bits
from kvtool.codecs.klt.features import features
from kvtool.codecs.klt.weights import Weights, whole_weights
from kvtool.codecs.spec import Array
from kvtool.kernels.threads import one_thread, one_thread_each

BLOCK, FEW = 256, 64
"""Rows of a matrix that one thread computes, of a large one and of a small one."""


@dataclass(frozen=True)
class Sizes:
    """Of one basis: ``layers`` times ``channels`` (heads times head size) columns, ``rank`` components."""

    layers: int
    channels: int
    rank: int
    features: int
    vocabulary: int

    @classmethod
    def of(cls, calibration: Calibration, name: str) -> Sizes:
        """Raises CodecError if the calibration has none under that name, or sizes that make no sense."""
        sizes, fields = calibration.fact("bases", name), set(cls.__dataclass_fields__)
        if not isinstance(sizes, dict) or sizes.keys() != fields or not all(map(_is_size, sizes.values())):
            field = f"{calibration.label}: sizes of {name}"
            raise unexpected(field, sizes, f"{sorted(fields)}, integers from 0")
        return cls(**sizes)

    @property
    def width(self) -> int:
        return self.layers * self.channels

    @property
    def components(self) -> int:
        """Components of the basis, and of its complement."""
        return self.rank + self.width


@dataclass(frozen=True)
class Basis:
    """Rows x [T, width] are what token ids predict and ``coefficients @ synthesis``, up to what the basis leaves out.

    ``directions`` [2 · features + rank, width] has those of the features, of a token and of the one before it, and then
    those of the components: one matrix, so that decoding cuts it and copies nothing. ``mean`` [width]. Both float32.
    What is left out has a basis of its own for each layer, whose components come in an ``order`` [width] across
    layers. A calibration has its matrices under ``weights``; one that was made before there were such has them as they are.
    """

    calibration: Calibration
    name: str
    sizes: Sizes
    directions: Tensor
    mean: Tensor
    weights: Weights | None = None

    @property
    def prediction(self) -> Tensor:
        """[2 · features, width]"""
        return self.directions[: 2 * self.sizes.features]

    @property
    def synthesis(self) -> Tensor:
        """[rank, width]"""
        return self.directions[2 * self.sizes.features :]

    def directions_on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Directions of a token's features, of the previous token's, and of the components, each [n, L, C]."""
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = self.directions.to(device, dtype)
        directions = self._copies[device, dtype]
        by_layer, n = directions.view(-1, self.sizes.layers, self.sizes.channels), self.sizes.features
        return by_layer[:n], by_layer[n : 2 * n], by_layer[2 * n :]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def predictor(self, token_ids: Tensor) -> Callable[[int, int], Tensor]:
        """Gives the rows [n, width] that ``token_ids`` [T] predict, from one to before another.

        A token missing in the vocabulary predicts nothing. A text repeats tokens: what each predicts is computed once.
        """
        words, where = torch.unique(token_ids, return_inverse=True)
        with one_thread():
            own = self.own_features(words)
        of_token, of_previous = (_product(own, half) for half in self.prediction.chunk(2))

        def rows(first: int, stop: int) -> Tensor:
            rows = self.mean + of_token[where[first:stop]]
            after = where[max(first - 1, 0) : stop - 1]
            rows[len(rows) - len(after) :] += of_previous[after]
            return rows

        return rows

    def own_features(self, token_ids: Tensor) -> Tensor:
        """[T, features]: zeros for tokens beyond the vocabulary."""
        sizes = self.sizes
        if not (sizes.vocabulary and sizes.features):
            return torch.zeros(len(token_ids), sizes.features)
        return features(self.calibration, token_ids, sizes.vocabulary, sizes.features)

    def features(self, token_ids: Tensor) -> Tensor:
        """[T, 2 · features]: those of each token and of the one before it; nothing stands before the first."""
        return with_previous(self.own_features(token_ids))

    @cached_property
    def sensitivity(self) -> Tensor:
        """[L, C, C]: the cost of an error's outer product, layer by layer."""
        if self.weights is not None:
            return self.weights.sensitivity
        name = f"{self.name}.sensitivity"
        return eight_bits.whole_symmetric(self.calibration, name, self.sizes.layers, self.sizes.channels)

    @cached_property
    def _analysis(self) -> tuple[Tensor, Tensor]:
        """[width, rank] and [rank, rank]: one after the other they give the coefficients with the least weighted error."""
        with one_thread():
            weighted = self._weighted(self.synthesis)
        # The basis was orthonormal under these weights before it was stored in few bits; now it is nearly so.
        gram = _product(weighted, self.synthesis.mT).double()
        gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        try:
            with one_thread():
                return weighted.mT, torch.cholesky_inverse(torch.linalg.cholesky(gram)).float()
        except RuntimeError:
            raise CodecError(
                f"{self.calibration.label}: rows of {self.name}.basis depend on one another"
            ) from None

    def projected(self, rows: Tensor) -> Tensor:
        """Coefficients [n, rank] of ``rows`` [n, width], with the least error, weighted by its effect on the loss."""
        weighted, inverse = self._analysis
        return rows @ weighted @ inverse

    @cached_property
    def complement(self) -> Tensor:
        """[L, C, C]: for each layer, the basis of what the components leave out."""
        sizes, name = self.sizes, f"{self.name}.complement"
        if self.weights is None:
            rows = eight_bits.whole_rows(self.calibration, name, sizes.width, sizes.channels)
            return rows.view(sizes.layers, sizes.channels, sizes.channels)
        rows = compact.whole_rows(self.calibration, name, sizes.width, sizes.channels)
        by_row = rows.view(sizes.layers, sizes.channels, sizes.channels).transpose(0, 1).flatten(1)
        back = self.weights.undo(by_row).view(sizes.channels, sizes.layers, sizes.channels)
        return back.transpose(0, 1).contiguous()

    @cached_property
    def order(self) -> Tensor:
        """[width] int64. Raises CodecError unless it is one."""
        order = self.calibration.tensor(f"{self.name}.order", Array((self.sizes.width,), torch.int32)).long()
        if not torch.equal(order.sort().values, torch.arange(self.sizes.width)):
            raise CodecError(f"{self.calibration.label}: {self.name}.order is no permutation")
        return order

    @cached_property
    def _apart(self) -> Tensor:
        """[L, C, C]: gives the components of what is left out."""
        # One layer at a time: once torch.set_num_threads was called, torch 2.13 fails on a batch of large matrices.
        with one_thread():
            return torch.stack([torch.linalg.inv(basis) for basis in self.complement.double()]).float()

    def coefficients(self, rows: Tensor, token_ids: Tensor, *, whole: bool) -> Tensor:
        """[T, rank], or [T, rank + width] with the complement's if ``whole``.

        One thread for each block of tokens: what is encoded may not depend on how many there are.
        """
        synthesis, predicted, _ = self.synthesis, self.predictor(token_ids), self._analysis
        apart, order = (self._apart, self.order) if whole else (None, None)

        def of_block(first: int) -> Tensor:
            stop = min(first + BLOCK, len(rows))
            residual = rows[first:stop] - predicted(first, stop)
            kept = self.projected(residual)
            if apart is None:
                return kept
            rest = torch.addmm(residual, kept, synthesis, alpha=-1)
            by_layer = rest.view(len(rest), self.sizes.layers, self.sizes.channels).transpose(0, 1)
            return torch.cat([kept, (by_layer @ apart).transpose(0, 1).flatten(1)[:, order]], 1)

        return torch.cat(one_thread_each(of_block, range(0, max(len(rows), 1), BLOCK)))

    def left_out(self, rows: Tensor, token_ids: Tensor) -> float:
        """The mean of what the basis leaves out of ``rows`` [T, width], squared and weighted, over some 128 tokens."""
        some = slice(None, None, max(1, len(rows) // 128))
        with one_thread():
            features = self.features(token_ids)[some]
        _ = self._analysis

        def squared(rows: Tensor, features: Tensor) -> Tensor:
            residual = rows - self.mean - features @ self.prediction
            rest = residual - self.projected(residual) @ self.synthesis
            return (self._weighted(rest) * rest).sum()

        parts = (torch.split(x, FEW) for x in (rows[some], features))
        return sum(part.item() for part in one_thread_each(squared, *parts)) / max(len(features), 1)

    def _weighted(self, rows: Tensor) -> Tensor:
        """[n, width], times each layer's sensitivity."""
        by_layer = rows.view(-1, self.sizes.layers, self.sizes.channels)
        return torch.einsum("nlc,lcd->nld", by_layer, self.sensitivity).flatten(1)


@lru_cache(maxsize=8)
def basis_of(calibration: Calibration, name: str) -> Basis:
    """Raises CodecError for a calibration that has no such basis, or tensors of other sizes than it claims."""
    sizes = Sizes.of(calibration, name)
    mean = calibration.tensor(f"{name}.mean", Array((sizes.width,), torch.float32))
    predicting, rank, width = 2 * sizes.features, sizes.rank, sizes.width
    if f"{name}.weights.diagonal" not in calibration.tensors:
        shapes = (("prediction", predicting), ("basis", rank))
        parts = [eight_bits.whole_rows(calibration, f"{name}.{part}", n, width) for part, n in shapes]
        return Basis(calibration, name, sizes, torch.cat(parts), mean)
    weights = whole_weights(calibration, f"{name}.weights", sizes.layers, sizes.channels)
    matrices = (("prediction", predicting, width), ("basis", rank, width), ("spanned", predicting, rank))
    rest, synthesis, spanned = one_thread_each(
        lambda of: compact.whole_rows(calibration, f"{name}.{of[0]}", *of[1:]), matrices
    )
    blocks = (torch.split(x, BLOCK) for x in (rest, spanned))
    predicted = one_thread_each(lambda rest, spanned: weights.undo(rest.addmm_(spanned, synthesis)), *blocks)
    directions = torch.cat([*predicted, *one_thread_each(weights.undo, torch.split(synthesis, BLOCK))])
    return Basis(calibration, name, sizes, directions, mean, weights)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, the same whatever the number of threads."""
    return torch.cat(one_thread_each(lambda rows: rows @ b, torch.split(a, BLOCK)))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def with_previous(rows: Tensor) -> Tensor:
    """[T, 2 · n]: each token's row [n] and the previous token's, which is zeros for the first."""
    return torch.cat([rows, torch.cat([torch.zeros(1, rows.shape[1]), rows])[: len(rows)]], 1)


def audible(calibration: Calibration, side: str, magnitude: float) -> int:
    """How many of the first components any basis of this side needs for all of mean ``magnitude`` or more; one at least."""
    least, most = MIDDLE + 8 * math.log2(magnitude), 1
    bases = calibration.facts.get("bases")
    for name in bases if isinstance(bases, dict) else ():
        if name.endswith(f".{side}"):
            rank = Sizes.of(calibration, name).rank
            scales = calibration.tensors[f"{name}.scales"][:rank]
            loud = (scales >= least).nonzero().flatten().tolist()
            most = max(most, loud[-1] + 1 if loud else 1)
    return most
