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
from kvtool.model.model import Model

GRADIENT_TOKENS = 4096
"""About how many tokens get gradients. Each takes as long as seven without, and with four times as many nothing was better."""


class Samples(Sequence[Sample]):
    """The caches of ``pieces``, each computed when it is first asked for, then kept in 16 bits.

    Gradients come with the first ``gradient_tokens`` tokens, and the first time only.
    ``on_sample`` is called with each sample that was computed, before it is kept.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        model: Model,
        gradient_tokens: int = 0,
        on_sample: Callable[[Sample], None] = lambda _: None,
    ) -> None:
        self.pieces, self.model, self.on_sample = pieces, model, on_sample
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
        self.on_sample(sample)
        self._kept[number] = _in_16_bits(sample.kv)
        return replace(sample, kv=self._kept[number])

    def _compute(self, piece: Piece, with_gradients: bool) -> Sample:
        if with_gradients:
            return gradients(self.model, piece.prefix_ids, piece.token_ids, tokens=PIECE_TOKENS)
        if self._prefiller is None or self._prefix_ids != piece.prefix_ids:
            self._prefiller, self._prefix_ids = Prefiller(self.model, piece.prefix_ids), piece.prefix_ids
        return Sample(self._prefiller.one(piece.token_ids))


def _in_16_bits(kv: KV) -> KV:
    """A copy, so that a view does not keep the memory of a whole pass."""

    def half(x: Tensor) -> Tensor:
        return saturated(x.float().clone(), torch.float16)

    layers = tuple(LayerKV(half(x.keys), half(x.values), x.positions) for x in kv.layers)
    return KV(layers, kv.token_ids, kv.rope)
