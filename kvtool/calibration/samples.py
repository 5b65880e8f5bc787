"""Samples that a calibration is made from: the caches of pieces of documents, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor

from kvtool.calibration.pieces import PIECE_TOKENS, Piece
from kvtool.codecs import KV, LayerKV, Sample
from kvtool.codecs.float16 import saturated
from kvtool.engines.gradients import gradients
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import UsageError
from kvtool.model.model import Model

GRADIENT_TOKENS = 4096
"""About how many tokens get gradients. Each takes as long as seven without, and with four times as many nothing was better."""

KEPT_BYTES = 8 << 30
"""The most bytes of all samples' keys and values in 16 bits. They stay in memory while a recipe goes over them."""


class Samples(Sequence[Sample]):
    """The caches of ``pieces``, each computed when it is first asked for, then kept in 16 bits.

    Gradients come with the first ``gradient_tokens`` tokens, and the first time only.
    ``on_tokens`` is called with the number of tokens of each sample that was computed. Raises ``UsageError`` as soon as it is
    known that all would take more than ``KEPT_BYTES``.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        model: Model,
        gradient_tokens: int = 0,
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.pieces, self.model, self.on_tokens = pieces, model, on_tokens
        tokens_before = accumulate((len(piece.token_ids) for piece in pieces), initial=0)
        self._has_gradients = [n < gradient_tokens for n in tokens_before]
        self._kept: dict[int, KV] = {}
        self._prefiller: Prefiller | None = None
        self._prefix_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number in self._kept:
            return Sample(self._kept[number])
        sample = self._compute(self.pieces[number], self._has_gradients[number])
        self._refuse_too_many(sample.kv)
        self._kept[number] = _in_16_bits(sample.kv)
        self.on_tokens(sample.kv.n_tokens)
        return replace(sample, kv=self._kept[number])

    def _compute(self, piece: Piece, with_gradients: bool) -> Sample:
        if with_gradients:
            return gradients(self.model, piece.prefix_ids, piece.token_ids, tokens=PIECE_TOKENS)
        if self._prefiller is None or self._prefix_ids != piece.prefix_ids:
            self._prefiller, self._prefix_ids = Prefiller(self.model, piece.prefix_ids), piece.prefix_ids
        return Sample(self._prefiller.one(piece.token_ids))

    def _refuse_too_many(self, kv: KV) -> None:
        nbytes = 2 * kv.n_elements / max(kv.n_tokens, 1)
        tokens = sum(len(piece.token_ids) for piece in self.pieces)
        if tokens * nbytes > KEPT_BYTES:
            raise UsageError(
                "--tokens",
                f"{tokens} tokens of {self.model.name} take {tokens * nbytes / 1e9:.1f} GB while they are learned "
                f"from, at most {KEPT_BYTES / 1e9:.1f} are allowed",
                f"give {int(KEPT_BYTES / nbytes)} or fewer to kvtool calibrate, or compress with --recipe kivi, "
                "which needs no calibration",
            )


def _in_16_bits(kv: KV) -> KV:
    """A copy, so that a view does not keep the memory of a whole pass."""

    def half(x: Tensor) -> Tensor:
        return saturated(x.float().clone(), torch.float16)

    layers = tuple(LayerKV(half(x.keys), half(x.values), x.positions) for x in kv.layers)
    return KV(layers, kv.token_ids, kv.rope)
