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

    Entries are quantized against their token's largest, in steps of 1 : 2 : 3 for the first, second and last
    third of the layers, since early layers matter more; then coded under a distribution for each layer and
    channel. With ``group``, the first token of each ``group`` is an anchor in 8 bits, and the others are coded
    as differences from it, for neighbouring tokens are alike.

    What is whose. Steps that grow with depth, a distribution for each layer and channel, anchors and groups of
    10 tokens are the paper's. The authors' code has no anchors, and neither does the default here: on the
    embedded model they cost more than they give. The five levels of ``level`` are ours, 1 the finest, and so is
    the default. The paper gives step sizes of 0.5, 1 and 1.5 without saying in what unit; a level here gives the
    number of bins between a token's largest entries. The authors' code has three levels of its own, for
    Mistral-7B, with 12 to 32 bins; the middle one has those of ``cachegen-lmcache``.

    What differs. Distributions are measured on the segment itself and described in a few bytes, not profiled for
    a model ahead of time. The coder is rANS, not arithmetic coding: the same bits, decoded faster. Chunks of one
    level each, chosen by bandwidth while streaming, are not made: an artifact has one level.
    """
    anchors = (Anchors(group=group),) if group else ()
    side = *common.window(sinks, recent), *anchors, Vectorwise(bins=BINS[level]), Rans()
    return Pipeline(keys=side, values=side)


RECIPE = Recipe(
    name="cachegen",
    paper="2310.07240 CacheGen: KV Cache Compression and Streaming for Fast LLM Serving",
    summary="a scale for each token, finer in early layers, entropy coded",
    make=cachegen,
    parameters={
        "level": Parameter(2, tuple(BINS), "encoding level, 1 the finest"),
        "group": Parameter(0, range(1 << 16), "tokens that share an anchor, 2 or more; 0: no anchors"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
