"""The last pass over samples: what the entropy coder of ``klt`` expects of each component (``entropy_models.context``)."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy_models import context
from kvtool.codecs.klt.basis import basis_of
from kvtool.codecs.klt.learned import Learned
from kvtool.codecs.quantize.deadzone import Deadzone
from kvtool.codecs.spec import Spec

STEPS = (0.01, 0.03, 0.07)
"""At which codes are counted."""

CODED = 1 << 13
"""About how many tokens: a few numbers are learned from them, and soon."""


def with_statistics(fitted: Calibration, learned: Learned) -> Calibration:
    """``fitted`` with tensors for the entropy coder, and with the fact of how much its bases leave out."""
    tensors, left_out = dict(fitted.tensors), {}
    total = torch.zeros(context.SHAPE, dtype=torch.int64)
    for name in learned.groups:
        coefficients, left_out[name] = _coefficients(fitted, learned, name)
        magnitudes = torch.stack([part.abs().sum(0) for part in coefficients]).sum(0) / sum(
            map(len, coefficients)
        )
        scales = (context.MIDDLE + 8 * magnitudes.clamp(min=1e-30).log2()).round().clamp(0, 255)
        scales = scales.to(torch.uint8)
        before = context.Autoregression(len(scales))
        # Larger steps would hardly count beside the smallest, in whose steps the sums are the largest.
        for part in coefficients:
            before.add(*_coded(part, min(STEPS)))
        weights = before.weights()
        for part, step in product(coefficients, STEPS):
            total += context.counts(*_coded(part, step), scales, weights, step)
        tensors |= {f"{name}.scales": scales, f"{name}.autoregression": weights}
    tensors["tables"] = context.roots(total)
    return Calibration(fitted.method, {**fitted.facts, "left_out": left_out}, tensors)


def _coefficients(fitted: Calibration, learned: Learned, name: str) -> tuple[list[Tensor], float]:
    """Coefficients [T, R] of the first samples, those of the complement among them; and its mean share of the loss."""
    basis, found, tokens, left_out = basis_of(fitted, name), [], 0, 0.0
    for part in learned.parts(name):
        coefficients = basis.coefficients(part.rows, part.token_ids, whole=True)
        found.append(coefficients)
        # Rows of a complement are orthonormal under the weights.
        left_out += coefficients[:, basis.sizes.rank :].square().sum().item()
        tokens += len(coefficients)
        if tokens >= CODED:
            break
    return found, left_out / max(tokens, 1)


def _coded(coefficients: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Codes [T, R] and exponents [T]."""
    coded = Deadzone(step=step).encode({"x": coefficients}, Spec.of(coefficients))
    return coded["codes"], coded["exponents"]
