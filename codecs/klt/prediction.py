"""Predicts keys and values from a token and the one before it: a small table, and a linear map for each basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.calibrate.factors import eigh, solve
from kvtool.codecs.klt.basis import with_previous
from kvtool.codecs.klt.features import unit_rows
from kvtool.codecs.klt.learned import Learned

EMBEDDED = 512
"""Directions of the embedding, those in which the samples' tokens differ most, that features are looked for in."""

RIDGE = 0.01
"""Added to each feature's variance, as a share of the mean variance: there are few tokens for many features."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of products: of embedded tokens with one another, and with rows of each basis."""

    embedded: Embedded
    seen: Tensor
    crossed: dict[str, Tensor]

    @classmethod
    def of(cls, embedding: Tensor, learned: Learned) -> Moments:
        """Goes through the samples once. ``embedding`` [V, W]."""
        embedded = Embedded.of(embedding, torch.cat([sample.kv.token_ids for sample in learned.samples]))
        n = 2 * embedded.directions.shape[1]
        seen, crossed = torch.zeros(n, n), {}
        for number, name in enumerate(learned.groups):
            crossed[name] = torch.zeros(n, len(learned.means[name]))
            for part in learned.weighted(name):
                features = embedded.both(part.token_ids)
                crossed[name].addmm_(features.mT, part.rows)
                if not number:
                    seen.addmm_(features.mT, features)
        return cls(embedded, seen, crossed)

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
            directions = eigh(rows.mT @ rows)[1][:, -EMBEDDED:]
        scale = ((rows @ directions).square().sum() / directions.shape[1]).sqrt().clamp(min=1e-12)
        return cls(embedding, mean, directions / scale)

    def features(self, token_ids: Tensor) -> Tensor:
        """[T, n]"""
        return (unit_rows(self.embedding[token_ids]) - self.mean) @ self.directions

    def both(self, token_ids: Tensor) -> Tensor:
        """[T, 2 · n]: each token's features and those of the one before."""
        return with_previous(self.features(token_ids))

    def cut(self, directions: Tensor) -> Embedded:
        """Features ``features @ directions``."""
        return Embedded(self.embedding, self.mean, self.directions @ directions)


def directions(moments: Moments, features: int, tokens: int) -> Tensor:
    """[n, features]: what of an embedding predicts most of all bases' rows, each with unit variance on the samples.

    ``moments`` are sums over ``tokens``.
    """
    n = moments.embedded.directions.shape[1]
    values, vectors = eigh(moments.seen[:n, :n].double())
    root = values.clamp(min=values.amax().item() * 1e-9).sqrt()
    predicted = torch.zeros(n, n, dtype=torch.float64)
    for crossed in moments.crossed.values():
        maps = ridge(moments.seen, crossed).double()
        for half in (maps[:n], maps[n:]):
            own = root[:, None] * (vectors.mT @ half)
            predicted += own @ own.mT
    best = eigh(predicted)[1].flip(1)[:, :features]
    directions: Tensor = (vectors @ (best / root[:, None]) * tokens**0.5).float()
    return directions


def ridge(seen: Tensor, crossed: Tensor) -> Tensor:
    """The map [n, width] that predicts rows from features with the least squared error, kept small."""
    n = len(seen)
    damped = seen.double() + RIDGE * seen.diagonal().mean().double() * torch.eye(n, dtype=torch.float64)
    return solve(damped, crossed.double()).float()
