"""Papers as data: kvtool's own recipes. They are found through the entry point group ``kvtool.recipes``."""

from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage


def kivi(bits: int, group: int, recent: int) -> Pipeline:
    """KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache (Liu et al., 2024, arXiv 2402.02750).

    Min–max quantization, ``x ≈ code * scale + zero`` with scale = (max - min) / (2**bits - 1): keys per
    channel, since a few key channels are large throughout, over groups of ``group`` tokens; values per token
    over groups of ``group`` channels; the last ``recent`` tokens in 16 bits. The paper's values are 32 and
    128, at 2 or 4 bits.

    What differs. The authors' code keeps the last 128 values but only T mod 128 keys, because keys leave its
    window 128 at a time while decoding; a finished prefix does not grow, so here both keep the last 128.
    Where tokens or channels are no multiple of ``group``, the last group is short, not left in 16 bits.
    Scale and zero are float16 for every cache dtype, and steps count from the zero as rounded.
    """

    def side(axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        return Group(bits=bits, group=group, recent=recent, axis=axis), Pack()

    return Pipeline(keys=side("token"), values=side("channel"))


def lossless(level: int) -> Pipeline:
    """The very bits: tensors split into byte planes, each under zstd. No paper; the idea is bitshuffle's."""
    return Pipeline(keys=(Planes(level=level),), values=(Planes(level=level),))


RECIPES = (
    Recipe(
        name="kivi",
        paper="2402.02750 KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        summary="min–max quantization, keys per channel, values per token, recent tokens in 16 bits",
        make=kivi,
        parameters={
            "bits": Parameter(2, range(1, 9), "bits per code; the paper has 2 and 4"),
            "group": Parameter(
                32, range(1, 1 << 16), "tokens (keys) or channels (values) that share a scale"
            ),
            "recent": Parameter(128, range(1 << 31), "last tokens kept in 16 bits"),
        },
    ),
    Recipe(
        name="lossless",
        summary="the very bits: byte planes under zstd",
        make=lossless,
        parameters={"level": Parameter(3, range(1, 23), "zstd's level")},
    ),
)
