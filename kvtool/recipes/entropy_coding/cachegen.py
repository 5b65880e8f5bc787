from __future__ import annotations

from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.vectorwise import Vectorwise
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.transform.anchors import Anchors
from kvtool.recipes import common

BINS = {1: (96, 48, 32), 2: (64, 32, 24), 3: (48, 24, 16), 4: (32, 16, 12), 5: (24, 12, 8)}


def cachegen(level: int, group: int, recent: int, sinks: int) -> Pipeline:
    """CacheGen: KV Cache Compression and Streaming for Fast LLM Serving (Liu et al., 2024, arXiv 2310.07240).

    Tokens in groups of ``group``: the first, the anchor, in 8 bits, the others as differences from it, for
    neighbouring tokens are alike. The differences are quantized against each token's largest, in steps of
    1 : 2 : 3 for the first, second and last third of the layers, since early layers matter more; then coded
    under a distribution for each layer and channel. ``level`` is the encoding level: 1 the finest, 3 the
    paper's default.

    What differs. The paper gives step sizes of 0.5, 1 and 1.5 after vectorwise normalisation without saying
    in what unit; here a level gives the number of bins between a token's largest differences. Distributions
    are measured on the segment itself and described in a few bytes, not profiled for a model ahead of time.
    The coder is rANS, not arithmetic coding: the same bits, decoded faster. Chunks of one level each, chosen
    by bandwidth while streaming, are not made: an artifact has one level.
    """
    side = *common.window(sinks, recent), Anchors(group=group), Vectorwise(bins=BINS[level]), Rans()
    return Pipeline(keys=side, values=side)


RECIPE = Recipe(
    name="cachegen",
    paper="2310.07240 CacheGen: KV Cache Compression and Streaming for Fast LLM Serving",
    summary="differences from anchor tokens, entropy coded",
    make=cachegen,
    parameters={
        "level": Parameter(3, tuple(BINS), "encoding level, 1 the finest"),
        "group": Parameter(10, range(2, 1 << 16), "tokens that share an anchor"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
