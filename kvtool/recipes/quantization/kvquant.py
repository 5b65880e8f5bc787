from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.codebook import Codebook
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.join import Join
from kvtool.codecs.transform.outliers import Outliers
from kvtool.codecs.transform.unrope import Unrope
from kvtool.recipes import common


def kvquant(bits: int, outliers: int, qnorm: str, recent: int, sinks: int) -> Pipeline:
    """KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization (Hooper et al., 2024,
    arXiv 2401.18079).

    Keys as they were before RoPE, per channel over all tokens; values per token over the channels of all heads.
    Of each such vector ``outliers`` percent of the entries stay apart, sparse and in 16 bits, half of them the
    largest and half the smallest; the others are mapped to [-1, 1] and coded by non-uniform levels, one set of
    2**bits for the keys and one for the values of each layer. The first token is kept in 16 bits. ``qnorm``
    moves the levels so that decoded entries have the mean and deviation of the original ones, which the paper
    does at 2 bits. It has 2, 3 and 4 bits; 3 bits with 1 % outliers cost it less than 0.1 of perplexity.

    What differs. Levels are fitted by unweighted k-means to the document itself, and so are the ranges and the
    outliers of keys; the paper fits them once, to a calibration set, k-means weighted by Fisher information,
    because it must code a cache that still grows. The weights are missing here, since the recipe has no
    calibration; a first trial of such weights had a smaller KL at 2 bits. Outliers are a fixed number of each
    vector, rounded up, not what lies beyond a threshold found in calibration; where they stood, k-means sees the
    midpoint of the others, and the paper leaves them out. Ranges are float16.
    """

    def quantized(axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        apart = (Outliers(fraction=outliers / 100, axis=axis),) if outliers else ()
        return *apart, Codebook(bits=bits, axis=axis, match=qnorm == "on"), Pack()

    window = common.window(sinks, recent)
    return Pipeline(
        keys=(*window, Unrope(), *quantized("token")), values=(*window, Join(), *quantized("channel"))
    )


RECIPE = Recipe(
    name="kvquant",
    paper="2401.18079 KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
    summary="non-uniform levels, keys before RoPE, sparse outliers",
    make=kvquant,
    parameters={
        "bits": Parameter(3, range(1, 9), "bits per code; the paper has 2, 3 and 4"),
        "outliers": Parameter(1, range(51), "percent of the entries kept sparse in 16 bits"),
        "qnorm": Parameter("off", ("off", "on"), "levels keep mean and deviation, as the paper at 2 bits"),
        "recent": common.recent(),
        "sinks": common.sinks(1),
    },
)
