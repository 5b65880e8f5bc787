"""Distortion: KL, dNLL and top-1 of predictions over a restored cache, and errors of its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from kvtool.engines.cache import DocumentCache

SLICE = 64
"""Tokens whose distributions are compared at a time. In double precision they take eight bytes for each word."""


@dataclass(frozen=True)
class Distortion:
    """For each predicted token: KL(raw ‖ restored) in nats, difference of negative log likelihood, equal argmax.

    A new metric is a field here and a line in ``distortion``. What is measured, kept and averaged follows from the fields.
    """

    kl: list[float] = field(default_factory=list)
    dnll: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)


TOKEN_METRICS = tuple(metric.name for metric in fields(Distortion))
"""Names of the metrics that every predicted token has."""


def distortion(raw: Tensor, restored: Tensor, targets: Sequence[int]) -> Distortion:
    """Compares logits [S, V] over the raw and over the restored cache. ``targets`` [S] are the tokens that came next."""
    result = Distortion()
    ids = torch.tensor(targets, dtype=torch.int64)
    for start in range(0, len(raw), SLICE):
        p, q, target = (x[start : start + SLICE] for x in (raw, restored, ids))
        before, after = p.double().log_softmax(-1), q.double().log_softmax(-1)
        # A word that the raw cache rules out adds nothing, though its logarithm is infinite.
        terms = torch.where(before.isneginf(), 0.0, before.exp() * (before - after))
        result.kl.extend(terms.sum(-1).tolist())
        chosen = target[:, None]
        result.dnll.extend((before.gather(-1, chosen) - after.gather(-1, chosen)).flatten().tolist())
        result.top1.extend((p.argmax(-1) == q.argmax(-1)).double().tolist())
    return result


def cache_error(
    raw: DocumentCache, restored: DocumentCache, start: int
) -> dict[str, list[list[list[float]]]]:
    """Squared errors of keys and values.

    ``keys`` and ``values`` have for each layer and head the sum of squared errors from token ``start`` on, and the sum of
    squares of the raw tensor. Empty if tokens are missing from ``restored``.
    """
    if not restored.holds_all:
        return {}
    errors: dict[str, list[list[list[float]]]] = {"keys": [], "values": []}
    for before, after in zip(raw.layers, restored.layers, strict=True):
        for side, layers in errors.items():
            x, y = getattr(before, side)[0, :, start:], getattr(after, side)[0, :, start:]
            if x.shape != y.shape:
                return {}
            # Float32 sums of a long segment's squares lose digits; a head at a time in double they take little memory.
            heads = ((a.double(), b.double()) for a, b in zip(x, y, strict=True))
            layers.append([[_square(b - a), _square(a)] for a, b in heads])
    return errors


def _square(x: Tensor) -> float:
    return float(x.square().sum())
