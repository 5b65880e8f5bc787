"""One tensor of codes as bytes: a model of the codes, and blocks of them coded under it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kvtool.codecs import entropy_models
from kvtool.codecs.entropy_models.model import Ints, Tables, cost
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.codecs.spec import Array
from kvtool.kernels import dispatch

PACKED = 0
"""In the place of a model's number: the codes are merely packed."""

CELLS_AT_MOST = 1 << 26
"""Probabilities; tables are larger than codes where there are many channels and few tokens."""


@dataclass(frozen=True)
class Coding:
    """How codes of ``array`` [..., T, D] are coded, each channel under a distribution of its own.

    A byte names the model (``kvtool.codecs.entropy_models``). As little-endian uint32 follow the number of the model's
    side bytes and that of each block's, then all of these. A block is ``block`` tokens, coded by rANS
    (``kvtool.kernels.reference.rans``), or packed if that takes no more bytes. Where coding does not pay at all,
    the byte is 0 and the packed codes follow.
    """

    array: Array
    block: int

    @property
    def bound(self) -> int:
        """The most bytes that ``encode`` gives."""
        return 1 + self._packed(self.array.numel)

    def encode(self, codes: Tensor) -> Tensor:
        """The bytes [n] uint8 of ``codes``. Raises CodecError for codes that are not below the levels."""
        self._check(codes)
        cut = codes.reshape(self._cut)
        packed = torch.cat([byte_tensor(bytes([PACKED])), dispatch.pack(cut.reshape(-1), self.array.bits)])
        if self._levels < 2 or not codes.numel() or self._cells > CELLS_AT_MOST:
            return packed
        number, side, tables = self._fit(cut)
        blocks = []
        for place in self._blocks:
            piece = cut[:, place.start : place.stop].contiguous()
            raw = dispatch.pack(piece.reshape(-1), self.array.bits)
            block = dispatch.rans_encode(piece, *self._coder(tables))
            blocks.append(block if len(block) < len(raw) else raw)
        head = struct.pack(f"<B{len(blocks) + 1}I", number, len(side), *map(len, blocks))
        coded = torch.cat([byte_tensor(head + side), *blocks])
        return coded if len(coded) < len(packed) else packed

    def decode(self, data: Tensor, tokens: range | None = None, device: torch.device | None = None) -> Tensor:
        """Undo ``encode``: codes on ``device``, of bytes on the CPU. Raises CodecError for bytes that it has not made.

        Of blocks that hold none of ``tokens`` the codes are 0, not decoded.
        """
        if not len(data) or int(data[0]) > len(entropy_models.MODELS):
            raise CodecError(f"starts with {data[:1].tolist()}, expected the number of a model")
        if int(data[0]) == PACKED:
            return self._unpack(data[1:].to(device), self.array.numel).view(self.array.shape)
        (n_side, *lengths), start = read_lengths(data, len(self._starts) + 1, 1)
        model = entropy_models.MODELS[int(data[0]) - 1]
        if self._cells > CELLS_AT_MOST:
            raise CodecError(f"{self._cells} probabilities, expected at most {CELLS_AT_MOST}")
        if n_side + sum(lengths) != len(data) - start or n_side > model.nbytes(*self._sizes):
            raise CodecError(f"{n_side} side bytes and blocks of {sum(lengths)} bytes in {len(data) - start}")
        # Checked before memory is allocated for what the blocks claim to hold.
        for place, length in zip(self._blocks, lengths, strict=True):
            if self._least_bytes(n := self._cut[0] * len(place) * self._cut[2]) > length:
                raise CodecError(f"a block of {length} bytes cannot hold {n} codes")
        tables = model.tables(bytes(data[start : start + n_side].numpy()), *self._sizes)
        out, coded = torch.zeros(self._cut, dtype=torch.uint8, device=device), []
        start += n_side
        for place, length in zip(self._blocks, lengths, strict=True):
            where = [start, start + length, place.start, place.stop]
            start += length
            if tokens is not None and not (place.start < tokens.stop and tokens.start < place.stop):
                continue
            piece = out[:, place.start : place.stop]
            if length == self._packed(piece.numel()):
                packed = data[where[0] : where[1]].to(device)
                piece.copy_(self._unpack(packed, piece.numel()).view(piece.shape))
            else:
                coded.append(where)
        try:
            blocks = torch.tensor(coded, dtype=torch.int64).view(-1, 4)
            dispatch.rans_decode(data, blocks, *self._coder(tables), out)
        except ValueError as error:
            raise CodecError(str(error)) from None
        return out.view(self.array.shape)

    def _fit(self, codes: Tensor) -> tuple[int, bytes, Tables]:
        """The number, side bytes and tables of the model under which the codes take least."""
        counts, fits = self._counts(codes), []
        _, levels, tokens = self._sizes
        for number, model in enumerate(entropy_models.MODELS, 1):
            side = model.fit(counts, tokens)
            tables = model.tables(side, len(counts), levels, tokens)
            bits = cost(counts, tables.shares[tables.table]).sum() + 8 * len(side)
            fits.append((bits, number, side, tables))
        _, number, side, tables = min(fits, key=lambda fit: fit[0])
        return number, side, tables

    def _counts(self, codes: Tensor) -> Ints:
        rows, levels, _ = self._sizes
        flat = codes.transpose(1, 2).reshape(rows, -1).to(torch.int64)
        cells = flat + torch.arange(rows)[:, None] * levels
        counts: Ints = torch.bincount(cells.flatten(), minlength=rows * levels).view(rows, levels).numpy()
        return counts

    def _unpack(self, packed: Tensor, n: int) -> Tensor:
        if len(packed) != self._packed(n):
            raise CodecError(f"{len(packed)} bytes of packed codes, expected {self._packed(n)}")
        codes = dispatch.unpack(packed, n, self.array.bits)
        self._check(codes)
        return codes

    def _check(self, codes: Tensor) -> None:
        if codes.numel() and (largest := int(codes.max())) >= self._levels:
            raise CodecError(f"holds code {largest}, expected below {self._levels}")

    def _coder(self, tables: Tables) -> tuple[Tensor, Tensor, int, int]:
        return *tables.tensors(), entropy_models.precision(self._levels), self._lanes

    @cached_property
    def _cut(self) -> tuple[int, int, int]:
        """The shape as [A, T, D]. A tensor with one axis is a row of tokens."""
        if len(self.array.shape) < 2:
            return 1, self.array.numel, 1
        *outer, tokens, channels = self.array.shape
        return int(np.prod(outer, dtype=np.int64)), tokens, channels

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Rows, levels and tokens."""
        outer, tokens, channels = self._cut
        return outer * channels, self._levels, tokens

    @property
    def _levels(self) -> int:
        return self.array.levels or 1

    @property
    def _lanes(self) -> int:
        # 32 are decoded fastest, and cost 64 bytes for each block.
        rows, _, tokens = self._sizes
        return 32 if rows * min(self.block, tokens) >= 1 << 13 else 4

    @cached_property
    def _blocks(self) -> list[range]:
        return [range(t, min(t + self.block, self._cut[1])) for t in self._starts]

    @property
    def _starts(self) -> range:
        """Where blocks start: a range, so that they can be counted before there is room for each."""
        return range(0, self._cut[1], self.block)

    @property
    def _cells(self) -> int:
        """Probabilities in all tables, if each row has its own."""
        return self._sizes[0] * self._levels

    def _least_bytes(self, n: int) -> float:
        """Half of what ``n`` codes take where each has the largest share there can be; coding is not that precise."""
        precision = entropy_models.precision(self._levels)
        least_bits = precision - math.log2((1 << precision) - self._levels + 1)
        return n * least_bits / 16

    def _packed(self, n: int) -> int:
        return dispatch.packed_size(n, self.array.bits)


def read_lengths(data: Tensor, n: int, start: int) -> tuple[list[int], int]:
    """``n`` little-endian uint32 of ``data`` from byte ``start`` on, and where they end."""
    end = start + 4 * n
    if len(data) < end:
        raise CodecError(f"{len(data)} bytes are too few for {n} lengths")
    return list(struct.unpack(f"<{n}I", bytes(data[start:end].numpy()))), end
