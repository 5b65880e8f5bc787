"""Canonical bytes and their digests: the same on every machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import blake3
import numpy as np
import torch
from torch import Tensor

from kvtool.codecs.format.container import canonical_json as canonical_json

Json = Any


def digest(data: bytes) -> str:
    return str(blake3.blake3(data).hexdigest())


def is_digest(text: object) -> bool:
    """Whether it could be one: only then may it become a path."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def digest_json(value: Json) -> str:
    return digest(canonical_json(value))


def digest_token_ids(token_ids: Sequence[int]) -> str:
    """Digest of token ids as little-endian int64."""
    return digest(np.array(token_ids, dtype="<i8").tobytes())


def runs(tensor: Tensor) -> Iterable[memoryview]:
    """The tensor's bytes in order, as views of its memory: one if it is contiguous, else one for each run.

    A segment's keys are a slice of a longer buffer; hashing and writing them must not copy them first.
    """
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        # numpy has no bfloat16, bytes have no type.
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    else:
        for part in tensor:
            yield from runs(part)


def digest_tensor(tensor: Tensor) -> str:
    """Digest of the tensor's bytes, in order, little-endian; not of its shape or dtype."""
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for run in runs(tensor):
        hasher.update(run)
    return str(hasher.hexdigest())
