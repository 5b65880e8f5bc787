"""Predicts keys and values from a token and the one before it: a small table, and a linear map for each basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.klt.basis import with_previous
from kvtool.codecs.klt.features import unit_rows

EMBEDDED = 512
"""Directions of the embedding, those in which the samples' tokens differ most, that features are looked for in."""

RIDGE = 0.01
"""Added to each feature's variance, as a share of the mean variance: there are few tokens for many features."""


@dataclass
class Moments:
    """Sums over tokens of products: of embedded tokens with one another, and with rows of each basis."""

    embedded: Embedded
    seen: Tensor
    crossed: dict[str, Tensor]

    @classmethod
    def none(cls, embedded: Embedded) -> Moments:
        """Before the first token."""
        n = 2 * embedded.directions.shape[1]
        return cls(embedded, torch.zeros(n, n), {})

    def both(self, token_ids: Tensor) -> Tensor:
        """[T, 2 · n]: each token's embedding and that of the one before."""
        return with_previous(self.embedded.features(token_ids))

    def add(self, features: Tensor) -> None:
        self.seen += features.mT @ features

    def cross(self, name: str, features: Tensor, rows: Tensor) -> None:
        if name not in self.crossed:
            self.crossed[name] = torch.zeros(features.shape[1], rows.shape[1])
        self.crossed[name] += features.mT @ rows

    def cut(self, directions: Tensor) -> Moments:
        """The same of fewer features."""
        both = torch.kron(torch.eye(2), directions)
        crossed = {name: both.mT @ crossed for name, crossed in self.crossed.items()}
        return Moments(self.embedded.cut(directions), both.mT @ self.seen @ both, crossed)


@dataclass(frozen=True)
class Embedded:
    """Features ``(unit_rows(embedding) - mean) @ directions`` of tokens: ``embedding`` [V, W], ``directions`` [W, n]."""

    embedding: Tensor
    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, embedding: Tensor, token_ids: Tensor) -> Embedded:
        """The main directions on ``token_ids``, at most ``EMBEDDED``, scaled so that features are near 1."""
        words, counts = torch.unique(token_ids, return_counts=True)
        rows, shares = unit_rows(embedding[words]), counts[:, None] / len(token_ids)
        mean = (rows * shares).sum(0)
        rows = (rows - mean) * shares.sqrt()
        directions = torch.eye(rows.shape[1])
        if rows.shape[1] > EMBEDDED:
            directions = torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -EMBEDDED:]
        scale = ((rows @ directions).square().sum() / directions.shape[1]).sqrt().clamp(min=1e-12)
        return cls(embedding, mean, directions / scale)

    def features(self, token_ids: Tensor) -> Tensor:
        """[T, n]"""
        return (unit_rows(self.embedding[token_ids]) - self.mean) @ self.directions

    def cut(self, directions: Tensor) -> Embedded:
        """Features ``features @ directions``."""
        return Embedded(self.embedding, self.mean, self.directions @ directions)


def directions(moments: Moments, features: int, tokens: int) -> Tensor:
    """[n, features]: what of an embedding predicts most of all bases' rows, each with unit variance on the samples.

    ``moments`` are sums over ``tokens``.
    """
    n = moments.embedded.directions.shape[1]
    values, vectors = torch.linalg.eigh(moments.seen[:n, :n].double())
    root = values.clamp(min=values.amax().item() * 1e-9).sqrt()
    predicted = torch.zeros(n, n, dtype=torch.float64)
    for crossed in moments.crossed.values():
        maps = ridge(moments.seen, crossed).double()
        for half in (maps[:n], maps[n:]):
            own = root[:, None] * (vectors.mT @ half)
            predicted += own @ own.mT
    best = torch.linalg.eigh(predicted).eigenvectors.flip(1)[:, :features]
    directions: Tensor = (vectors @ (best / root[:, None]) * tokens**0.5).float()
    return directions


def ridge(seen: Tensor, crossed: Tensor) -> Tensor:
    """The map [n, width] that predicts rows from features with the least squared error, kept small."""
    n = len(seen)
    damped = seen.double() + RIDGE * seen.diagonal().mean().double() * torch.eye(n, dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(damped, crossed.double()).float()
    return solution


def residual(covariance: Tensor, seen: Tensor, crossed: Tensor, maps: Tensor) -> Tensor:
    """The second moment [width, width] of rows less what ``maps`` predict; sums, as are all that is given."""
    half = maps.mT @ crossed
    return covariance - half - half.mT + maps.mT @ (seen @ maps)
