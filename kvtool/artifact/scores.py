"""Scores of tokens that an artifact may hold beside keys and values: for blending, in 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD, NEED = "spread", "need"
SCORES = {SPREAD: ("layers", "tokens"), NEED: ("tokens",)}
"""Scores by name, with their axes. ``spread``: how much a token's key and value depend on what stands before it, layer by
layer. ``need``, in artifacts of earlier versions only: the same, weighted by the attention of later tokens; nothing reads it."""

DTYPE = torch.float8_e4m3fn
"""Stored dtype of scores."""


def in_8_bits(scores: Tensor) -> Tensor:
    return scores.clamp(0, torch.finfo(DTYPE).max).to(DTYPE)


def tensor_name(score: str) -> str:
    """The name of a score's tensor in the file."""
    return f"scores.{score}"
