"""What errors cost: for each layer the root of its sensitivity, under which an error of one costs about the same anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError
from kvtool.codecs.klt.compact import compact_rows, whole_rows
from kvtool.codecs.spec import Array

STEP = 1 / 64
"""Of a root's entries, relative to its row. Coding and decoding take the rounded root, so that nothing depends on more."""


@dataclass(frozen=True)
class Weights:
    """An error e of layer l costs ``|e @ root[l]|²``: ``root`` [L, C, C] float32 is lower triangular, as Cholesky gives it."""

    root: Tensor

    def apply(self, rows: Tensor) -> Tensor:
        """[n, L · C], so that errors' squares are what they cost."""
        return self._times(rows, self.root)

    def undo(self, rows: Tensor) -> Tensor:
        """[n, L · C], back from ``apply``."""
        return self._times(rows, self._inverse)

    @property
    def sensitivity(self) -> Tensor:
        """[L, C, C]: the cost of an error's outer product."""
        return self.root @ self.root.mT

    @cached_property
    def _inverse(self) -> Tensor:
        one = torch.eye(self.root.shape[1], dtype=torch.float64)
        # One at a time: once torch.set_num_threads was called, torch 2.13 fails on a batch of large matrices.
        inverses = [torch.linalg.solve_triangular(root.double(), one, upper=False) for root in self.root]
        return torch.stack(inverses).float()

    @staticmethod
    def _times(rows: Tensor, matrices: Tensor) -> Tensor:
        by_layer = rows.view(len(rows), *matrices.shape[:2])
        return torch.einsum("tlc,lcd->tld", by_layer, matrices).flatten(1)


def compact_weights(sensitivity: Tensor) -> dict[str, Tensor]:
    """Sensitivities [L, C, C] as tensors for ``whole_weights``: rounded roots, whose diagonals are kept as they are."""
    roots = torch.stack([torch.linalg.cholesky(one) for one in sensitivity.double()])
    channels = roots.shape[1]
    rows, columns = torch.tril_indices(channels, channels, offset=-1)
    lengths = roots.norm(dim=2).float()
    below = (roots.float() / lengths[:, :, None])[:, rows, columns]
    coded = compact_rows(below, torch.full((len(roots),), STEP))
    diagonal = roots.diagonal(dim1=1, dim2=2).float().contiguous()
    return {**coded, "length": lengths, "diagonal": diagonal}


def whole_weights(calibration: Calibration, name: str, layers: int, channels: int) -> Weights:
    """Raises CodecError for tensors of other sizes, and for a root that cannot be undone."""
    rows, columns = torch.tril_indices(channels, channels, offset=-1)
    below = whole_rows(calibration, name, layers, len(rows))
    lengths, diagonal = (
        calibration.tensor(f"{name}.{part}", Array((layers, channels), torch.float32))
        for part in ("length", "diagonal")
    )
    if not (diagonal > 0).all():
        raise CodecError(f"{calibration.label}: {name}: the diagonal of a root is not positive")
    root = torch.diag_embed(diagonal)
    root[:, rows, columns] = below * lengths[:, rows]
    return Weights(root)
