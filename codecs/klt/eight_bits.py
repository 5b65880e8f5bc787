"""Matrices in 8 bits: tables of tokens, and all matrices of calibrations that were made before ``compact``."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.spec import Array


def compact_rows(matrix: Tensor) -> dict[str, Tensor]:
    """A matrix [n, C] as tensors for ``whole_rows``: bytes, and a scale for each row."""
    scale = matrix.float().abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return {"bytes": (matrix / scale).round().to(torch.int8), "scale": scale.flatten()}


def whole_rows(calibration: Calibration, name: str, rows: int, columns: int) -> Tensor:
    """The matrix [rows, columns] float32 that ``compact_rows`` cut. Raises CodecError for tensors of other sizes."""
    scale = calibration.tensor(f"{name}.scale", Array((rows,), torch.float32))
    return calibration.tensor(f"{name}.bytes", Array((rows, columns), torch.int8)).float() * scale[:, None]


def some_rows(calibration: Calibration, name: str, shape: tuple[int, int], rows: Tensor) -> Tensor:
    """The ``rows`` [T] of a matrix [V, n] that ``compact_rows`` cut: [T, n] float32, zeros for those beyond it."""
    scale = calibration.tensor(f"{name}.scale", Array((shape[0],), torch.float32))
    codes = calibration.tensor(f"{name}.bytes", Array(shape, torch.int8))
    known = (rows >= 0) & (rows < shape[0])
    if not shape[0]:
        return torch.zeros(len(rows), shape[1])
    chosen = torch.where(known, rows, 0)
    return codes[chosen].float() * (scale[chosen] * known)[:, None]


def whole_symmetric(calibration: Calibration, name: str, layers: int, channels: int) -> Tensor:
    """Symmetric matrices [layers, channels, channels] float32: correlations below the diagonal, and scales."""
    rows, columns = torch.tril_indices(channels, channels, offset=-1)
    below = calibration.tensor(f"{name}.correlation", Array((layers, len(rows)), torch.int8))
    scale = calibration.tensor(f"{name}.scale", Array((layers, channels), torch.float32))
    out = torch.eye(channels).repeat(layers, 1, 1)
    out[:, rows, columns] = out[:, columns, rows] = below.float() / 127
    return out * (scale[:, :, None] * scale[:, None, :])
