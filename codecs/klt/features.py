"""Features of tokens, from which keys and values are predicted: a few directions of the model's own input embedding.

A calibration holds the directions and names the embedding; or it holds a table of all tokens' features, where the embedding is
not to be had apart from its model.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError, unexpected
from kvtool.codecs.klt.compact import compact_rows, whole_rows
from kvtool.codecs.klt.eight_bits import some_rows
from kvtool.codecs.klt.embeddings import embedding
from kvtool.codecs.spec import Array, Json

TABLE, DIRECTIONS, EMBEDDING = "tokens", "features", "embedding"
"""Names in a calibration: of the table, of the directions, and of the fact that says which embedding these are of."""

NOISE = 3e-3
"""Of a direction's rounding, times what its feature predicts; without an effect that could be measured."""


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of an embedding without their lengths, float32."""
    return torch.nn.functional.normalize(rows.float(), dim=1)


def compact_directions(
    mean: Tensor, directions: Tensor, predicted: Tensor, digest: str, vocabulary: int
) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Tensors and facts of features ``(unit_rows(embedding) - mean) @ directions``, [W, features], for ``features``.

    ``predicted`` [features] is the variance that each feature predicts. Those that predict more are rounded less.
    """
    steps = NOISE / predicted.clamp(min=1e-12).sqrt()
    coded = {f"{DIRECTIONS}.{name}": part for name, part in compact_rows(directions.mT, steps).items()}
    fact: dict[str, Json] = {"digest": digest, "vocabulary": vocabulary, "width": len(mean)}
    return {**coded, f"{DIRECTIONS}.mean": mean.float()}, {EMBEDDING: fact}


def features(calibration: Calibration, token_ids: Tensor, vocabulary: int, n: int) -> Tensor:
    """[T, n] float32 of tokens [T], zeros for those beyond the vocabulary.

    Raises CodecError for a calibration of other sizes, and where the embedding that it names is not to be had.
    """
    if EMBEDDING not in calibration.facts:
        return some_rows(calibration, TABLE, (vocabulary, n), token_ids)
    mean, directions = _directions(calibration, n)
    whole = embedding(str(calibration.fact(EMBEDDING, "digest")), calibration.label)
    if list(whole.shape) != [vocabulary, len(mean)]:
        shape = f"[{vocabulary}, {len(mean)}], which it was made with"
        raise unexpected(f"{calibration.label}: shape of the embedding", list(whole.shape), shape)
    known = (token_ids >= 0) & (token_ids < vocabulary)
    chosen = torch.where(known, token_ids, 0)
    return ((unit_rows(whole[chosen]) - mean) @ directions) * known[:, None]


@lru_cache(maxsize=4)
def _directions(calibration: Calibration, n: int) -> tuple[Tensor, Tensor]:
    width = calibration.fact(EMBEDDING, "width")
    if type(width) is not int or not 0 < width < 1 << 24:
        raise CodecError(
            f"{calibration.label}: width of the embedding is {width!r}, expected an integer from 1"
        )
    mean = calibration.tensor(f"{DIRECTIONS}.mean", Array((width,), torch.float32))
    return mean, whole_rows(calibration, DIRECTIONS, n, width).mT.contiguous()
