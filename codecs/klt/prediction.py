"""Predicts keys and values from a token and the one before it: a small table, and a linear map for each basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.klt.basis import with_previous

EMBEDDED = 512
"""Directions of the embedding, those in which the samples' tokens differ most, that features are looked for in."""

RIDGE = 0.01
"""Added to each feature's variance, as a share of the mean variance: there are few tokens for many features."""


@dataclass
class Moments:
    """Sums over tokens of products: of embedded tokens with one another, and with rows of each basis."""

    embedded: Tensor
    seen: Tensor
    crossed: dict[str, Tensor]

    @classmethod
    def none(cls, embedded: Tensor) -> Moments:
        """Before the first token."""
        n = 2 * embedded.shape[1]
        return cls(embedded, torch.zeros(n, n), {})

    def both(self, token_ids: Tensor) -> Tensor:
        """[T, 2 · n]: each token's embedding and that of the one before."""
        return with_previous(self.embedded[token_ids])

    def add(self, features: Tensor) -> None:
        self.seen += features.mT @ features

    def cross(self, name: str, features: Tensor, rows: Tensor) -> None:
        if name not in self.crossed:
            self.crossed[name] = torch.zeros(features.shape[1], rows.shape[1])
        self.crossed[name] += features.mT @ rows

    def cut(self, directions: Tensor) -> Moments:
        """The same of fewer features: ``embedded @ directions``."""
        both = torch.kron(torch.eye(2), directions)
        crossed = {name: both.mT @ crossed for name, crossed in self.crossed.items()}
        return Moments(self.embedded @ directions, both.mT @ self.seen @ both, crossed)


def embedded_tokens(embedding: Tensor, token_ids: Tensor) -> Tensor:
    """The embedding [V, W] without length and mean, cut to its main directions on ``token_ids``: [V, n] float32."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    unit = unit - unit[token_ids].mean(0)
    if unit.shape[1] > EMBEDDED:
        some = unit[token_ids]
        unit = unit @ torch.linalg.eigh(some.mT @ some).eigenvectors[:, -EMBEDDED:]
    scaled: Tensor = unit / unit[token_ids].square().mean().sqrt().clamp(min=1e-12)
    return scaled


def directions(moments: Moments, features: int) -> Tensor:
    """[n, features]: what of an embedding predicts most of all bases' rows, each with unit variance on the samples."""
    n = moments.embedded.shape[1]
    values, vectors = torch.linalg.eigh(moments.seen[:n, :n].double())
    root = values.clamp(min=values.amax().item() * 1e-9).sqrt()
    predicted = torch.zeros(n, n, dtype=torch.float64)
    for crossed in moments.crossed.values():
        maps = ridge(moments.seen, crossed).double()
        for half in (maps[:n], maps[n:]):
            own = root[:, None] * (vectors.mT @ half)
            predicted += own @ own.mT
    best = torch.linalg.eigh(predicted).eigenvectors.flip(1)[:, :features]
    directions: Tensor = (vectors @ (best / root[:, None])).float()
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
