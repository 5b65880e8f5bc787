from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.residual import LowRankResidual
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.outliers import JoinedOutliers
from kvtool.recipes import common


def gear(bits: int, group: int, rank: int, outliers: int, recent: int, sinks: int) -> Pipeline:
    """GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM (Kang et al.,
    2024, arXiv 2403.05527).

    A quantizer, and two remedies for what it loses: ``outliers`` percent of the entries apart and sparse in 16
    bits, half of them the largest and half the smallest of each channel over all tokens (keys) or of each token over
    the channels of all heads (values); and, of the difference between the cache and what quantization makes of the
    rest, an approximation of rank ``rank`` for each head, by power iteration. The quantizer is the one that the paper
    builds on at 2 bits, KIVI's: keys per channel over groups of ``group`` tokens, values per token over groups of
    ``group`` channels, 64 of either. With ``group`` above both sizes it is KCVT, the paper's quantizer at 4 bits, but
    for values, which have a scale for each head here. ``rank`` is the paper's for prompts; ``outliers=0`` is its GEAR-L.

    What differs. The number of outliers is rounded down on each side, as in the authors' code
    (GenerationBench/GenerationTest/GEARLM/Simulated/compress_function.py in opengear-project/GEAR). But there a channel
    has as many as a token, whatever the number of tokens; here it has the paper's percentage of its own entries. Where
    outliers stood, quantization sees the midpoint of the others, where the authors' code has the mean of all. Outliers
    are read back as they were; the authors' code adds the low-rank approximation to them. Power iteration begins at the
    tokens that lost most instead of at random, orthonormal in every step instead of the last. The authors leave tokens
    past the last whole group of keys in 16 bits; here the last group is shorter. Their 16-bit buffer holds tokens that
    are generated after the prompt; a finished prefix has none, so ``recent`` is 0. Scale and zero are float16.
    """

    def side(axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        apart = (JoinedOutliers(fraction=outliers / 100, axis=axis),) if outliers else ()
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
