from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.residual import LowRankResidual
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.outliers import Outliers
from kvtool.recipes import common


def gear(bits: int, group: int, rank: int, outliers: int, recent: int, sinks: int) -> Pipeline:
    """GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM (Kang et al.,
    2024, arXiv 2403.05527).

    A quantizer, and two remedies for what it loses: ``outliers`` percent of the entries apart and sparse in 16
    bits, half of them the largest and half the smallest of each channel (keys) or token (values); and, of the
    difference between the cache and what quantization makes of the rest, an approximation of rank ``rank`` for
    each head, by power iteration. The quantizer is the one that the paper builds on at 2 bits, KIVI's: keys per
    channel over groups of ``group`` tokens, values per token over groups of ``group`` channels, 64 of either.
    With ``group`` above both sizes it is KCVT, the paper's quantizer at 4 bits, but for values, which have a
    scale for each head here. ``rank`` is the paper's for prompts; ``outliers=0`` is its GEAR-L.

    What differs. Outliers are counted in each head's vectors and rounded up, so that 64 channels have 2 of them
    for the authors' 1.28; at their places quantization sees the midpoint of the others, where the authors' code
    has the mean. Power iteration begins at the tokens that lost most instead of at random, orthonormal in every
    step instead of the last. The authors' 16-bit buffer holds tokens that are generated after the prompt; a
    finished prefix has none, so ``recent`` is 0. Scale and zero are float16.
    """

    def side(axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        apart = (Outliers(fraction=outliers / 100, axis=axis),) if outliers else ()
        quantize = LowRankResidual(bits=bits, group=group, axis=axis, rank=rank)
        return *common.window(sinks, recent), *apart, quantize, Pack()

    return Pipeline(keys=side("token"), values=side("channel"))


RECIPE = Recipe(
    name="gear",
    paper="2403.05527 GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM",
    summary="min–max, its error at low rank, sparse outliers",
    make=gear,
    parameters={
        "bits": Parameter(2, range(1, 9), "bits per code; the paper has 2 and 4"),
        "group": Parameter(64, range(1, 1 << 31), "tokens (keys) or channels (values) that share a scale"),
        "rank": Parameter(4, range(1, 1 << 16), "rank of what each head's quantization lost"),
        "outliers": Parameter(2, range(51), "percent of the entries kept sparse in 16 bits"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
