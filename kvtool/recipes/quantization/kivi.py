from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.recipes import common


def kivi(bits: int, group: int, recent: int, sinks: int) -> Pipeline:
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
        return *common.window(sinks, recent), Group(bits=bits, group=group, axis=axis), Pack()

    return Pipeline(keys=side("token"), values=side("channel"))


RECIPE = Recipe(
    name="kivi",
    paper="2402.02750 KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    summary="min–max, keys per channel, values per token, recent ones whole",
    make=kivi,
    parameters={
        "bits": Parameter(2, range(1, 9), "bits per code; the paper has 2 and 4"),
        "group": Parameter(32, range(1, 1 << 16), "tokens (keys) or channels (values) that share a scale"),
        "recent": common.recent(128),
        "sinks": common.sinks(),
    },
)
