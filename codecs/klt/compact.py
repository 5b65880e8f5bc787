"""Matrices in a calibration, rounded as far as each row bears it and entropy coded.

A row has a step of its own. The larger its entries in steps, the more bits they take: about a half in the rows that carry
little, six and more in the first. Eight bits for every entry took three times the room, and uniform four lost a seventh of
all facts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy_models import context as model
from kvtool.codecs.errors import CodecError
from kvtool.codecs.klt.coefficients import CODES_IN_BYTE
from kvtool.codecs.spec import Array
from kvtool.kernels import dispatch
from kvtool.kernels.reference.context_model import ONE, Conditions

LARGEST = 32_000
"""Of an entry, in steps."""

ROUNDING = 0.4
"""Share of a step from which on an entry is rounded away from 0. Small entries cost more bits than they are worth."""


def compact_rows(matrix: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """A matrix [n, C] as tensors for ``whole_rows``, its rows in ``steps`` [n]; they are coarser where 16 bits demand it."""
    codes, steps = _rounded(matrix, steps)
    magnitudes = codes.abs().double().mean(0) if len(codes) else torch.zeros(codes.shape[1])
    scales = (8 * magnitudes.clamp(min=1e-3).log2()).round().clamp(model.LEAST, model.MOST).to(torch.int8)
    stream = dispatch.context_encode(codes, _conditions(len(codes), scales), model.cumulative(None))
    return {"codes": stream, "step": steps, "scales": scales}


def rounded_rows(matrix: Tensor, steps: Tensor) -> Tensor:
    """What ``whole_rows`` gives of the tensors that ``compact_rows`` makes of the same."""
    codes, steps = _rounded(matrix, steps)
    return codes.float() * steps[:, None]


def _rounded(matrix: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n, C] int16, and the steps [n] float32 that they are of."""
    steps = torch.maximum(steps.float(), matrix.abs().amax(1).float() / LARGEST).clamp(min=1e-30)
    scaled = matrix.float() / steps[:, None]
    return (scaled.sign() * (scaled.abs() + ROUNDING).floor()).to(torch.int16), steps


def whole_rows(calibration: Calibration, name: str, rows: int, columns: int) -> Tensor:
    """The matrix [rows, columns] float32 that ``compact_rows`` cut. Raises CodecError for tensors of other sizes."""
    steps = calibration.tensor(f"{name}.step", Array((rows,), torch.float32))
    scales = calibration.tensor(f"{name}.scales", Array((columns,), torch.int8))
    stream = calibration.tensors.get(f"{name}.codes", torch.zeros(0, dtype=torch.uint8))
    calibration.tensor(f"{name}.codes", Array((stream.numel(),), torch.uint8))
    # Checked before memory is allocated for what the stream claims to hold.
    if rows * columns > CODES_IN_BYTE * len(stream):
        raise CodecError(
            f"{calibration.label}: {name}: {len(stream)} bytes cannot hold {rows * columns} codes"
        )
    codes = torch.zeros(rows, columns, dtype=torch.int16)
    try:
        dispatch.context_decode(stream, _conditions(rows, scales), model.cumulative(None), codes)
    except ValueError as error:
        raise CodecError(f"{calibration.label}: {name}: {error}") from None
    return codes.float() * steps[:, None]


def _conditions(rows: int, scales: Tensor) -> Conditions:
    """What the coder knows: the mean magnitude of each column, in eighths of an octave."""
    columns = len(scales)
    return Conditions(
        torch.full((rows,), 32, dtype=torch.uint8),
        scales.to(torch.int32).clamp(model.LEAST, model.MOST),
        torch.zeros(columns, 2, dtype=torch.int8),
        torch.full((rows,), ONE, dtype=torch.int32),
    )
