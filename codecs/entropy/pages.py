"""Tokens in a row, so that a reader can fetch some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.quantize.group import extremes
from kvtool.codecs.spec import Array, Payload, Spec, check_codes
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch

LOW, HIGH = "low", "high"


@register
@dataclass(frozen=True)
class Pages(Stage):
    """Every tensor with three axes [H, n, ...] becomes [n, H, ...], so that the bytes of neighbouring tokens are in a row.

    uint8 codes of 1, 2 or 4 bits become [n, bytes], those of each row packed, where they fill whole bytes: the k-th bits of a
    byte are a code of the row's k-th part. The rest passes.
    With ``bounds``, which keys have, are stored beside ``x``

    - ``low`` and ``high`` [⌈T/page⌉, H, D], each channel's smallest and largest entry over ``page`` tokens, as in Quest
      (arXiv 2406.10774): they tell which pages a query may attend to.
    """

    name: ClassVar[str] = "pages"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"

    page: int = 16
    bounds: bool = False

    def __post_init__(self) -> None:
        self.require(self.page in range(1, 1 << 16), "page", self.page, "1 to 65535")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(page=5, bounds=True)

    def plan(self, spec: Spec) -> Spec:
        arrays = {name: _in_rows(array) for name, array in spec.arrays.items()}
        if self.bounds:
            x = self.x_of(spec, "heads", "tokens", "channels")
            heads, tokens, channels = x.shape
            bounds = Array((-(-tokens // self.page), heads, channels), x.dtype)
            self.require(
                not {LOW, HIGH} & arrays.keys(), "names", sorted(arrays), f"none called {LOW} or {HIGH}"
            )
            arrays |= {LOW: bounds, HIGH: bounds}
        return spec.with_arrays(arrays)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        out: dict[str, Tensor] = {}
        for name, array in spec.arrays.items():
            rows = x[name]
            if array.levels and array.dtype == torch.uint8:
                check_codes(f"{self.label}: {name}", rows, array.levels)
            if len(array.shape) == 3:
                rows = rows.transpose(0, 1).contiguous()
            out[name] = _pack(rows, array.bits) if _packs(array) else rows
        if self.bounds:
            low, high = extremes(x["x"], 1, self.page)
            out |= {LOW: low.transpose(0, 1).contiguous(), HIGH: high.transpose(0, 1).contiguous()}
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        out: dict[str, Tensor] = {}
        for name, array in spec.arrays.items():
            tensor = y[name]
            if len(array.shape) == 3:
                heads, n, last = array.shape
                rows = _unpack(tensor, array.bits) if _packs(array) else tensor
                tensor = rows.reshape(n, heads, last).transpose(0, 1).contiguous()
            if array.levels and array.dtype == torch.uint8:
                check_codes(f"{self.label}: {name}", tensor, array.levels)
            out[name] = tensor
        return out


def _packs(array: Array) -> bool:
    """Whether codes are packed: some fill a byte, and those of a row fill bytes."""
    if array.dtype != torch.uint8 or len(array.shape) != 3 or not array.levels or array.bits not in (1, 2, 4):
        return False
    heads, _, last = array.shape
    return bool(heads * last) and heads * last * array.bits % 8 == 0


def _in_rows(array: Array) -> Array:
    if len(array.shape) != 3:
        return array
    heads, n, last = array.shape
    if _packs(array):
        return Array((n, heads * last * array.bits // 8), torch.uint8)
    return Array((n, heads, last), array.dtype, levels=array.levels)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n, H, D] as [n, bytes], each row packed by itself."""
    n, heads, last = codes.shape
    nbytes = heads * last * bits // 8
    # The kernel fills the k-th bits of all bytes from the k-th run of codes: here the k-th parts of all rows.
    parts = codes.view(n, 8 // bits, nbytes).transpose(0, 1)
    return dispatch.pack(parts.reshape(-1), bits).view(n, nbytes)


def _unpack(rows: Tensor, bits: int) -> Tensor:
    n, nbytes = rows.shape
    codes = dispatch.unpack(rows.reshape(-1), n * nbytes * 8 // bits, bits)
    return codes.view(8 // bits, n, nbytes).transpose(0, 1)
