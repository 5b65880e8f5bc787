from __future__ import annotations

from typing import Literal

from kvtool.codecs.calibrate.kvquant import fit
from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.codebook import Codebook
from kvtool.codecs.quantize.weighted_codebook import WeightedCodebook
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.join import Join
from kvtool.codecs.transform.outliers import Outliers
from kvtool.codecs.transform.unrope import Unrope
from kvtool.recipes import common


def kvquant(
    bits: int,
    outliers: int,
    qnorm: str,
    weights: str,
    recent: int,
    sinks: int,
    calibration: Calibration | None = None,
) -> Pipeline:
    """KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization (Hooper et al., 2024,
    arXiv 2401.18079).

    Keys as they were before RoPE, per channel over all tokens; values per token over the channels of all heads.
    Of each such vector ``outliers`` percent of the entries stay apart, sparse and in 16 bits, half of them the
    largest and half the smallest; the others are mapped to [-1, 1] and coded by non-uniform levels, one set of
    2**bits for the keys and one for the values of each layer. The first token is kept in 16 bits. ``qnorm``
    moves the levels so that decoded entries have the mean and deviation of the original ones, which the paper
    does at 2 bits. It has 2, 3 and 4 bits; 3 bits with 1 % outliers cost it less than 0.1 of perplexity.

    What is whose. Non-uniform levels by k-means weighted with Fisher information are the paper's. It finds them once, on a
    calibration set, weighting every entry by its own squared gradient, because it must code a cache that still grows.
    Here levels are fitted to the document itself, as are the ranges and the outliers of keys. Their weights come of
    a calibration: a channel's mean squared gradient, times the square of the half range that its entries are divided
    by. That is ours. On three documents (docs/results/corrections.md) it has a KL of 0.078 nats per token at 2 bits
    and 0.020 at 3, where unweighted levels have 0.103 and 0.026. In a trial on two of them, levels that were fixed at
    calibration had 0.076 and 0.140 at 2 bits, unweighted ones 0.059 and 0.177, these 0.042 and 0.125. With
    ``weights=none`` all entries count alike, and no calibration is needed.

    What differs. Outliers are a fixed number of each vector, rounded up, not what lies beyond a threshold
    found in calibration; where they stood, k-means sees the midpoint of the others, and the paper leaves them out.
    Ranges are float16.
    """

    def quantized(side: Literal["keys", "values"], axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        apart = (Outliers(fraction=outliers / 100, axis=axis),) if outliers else ()
        match = qnorm == "on"
        if calibration is None:
            return *apart, Codebook(bits=bits, axis=axis, match=match), Pack()
        weighted = WeightedCodebook(bits=bits, axis=axis, match=match, calibration=calibration, side=side)
        return *apart, weighted, Pack()

    window = common.window(sinks, recent)
    return Pipeline(
        keys=(*window, Unrope(), *quantized("keys", "token")),
        values=(*window, Join(), *quantized("values", "channel")),
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
        "weights": Parameter(
            "fisher", ("fisher", "none"), "what k-means counts entries by; none takes no calibration"
        ),
        "recent": common.recent(),
        "sinks": common.sinks(1),
    },
    calibration="kvquant",
    fit=fit,
    gradients=True,
    uncalibrated={"weights": "none"},
)
