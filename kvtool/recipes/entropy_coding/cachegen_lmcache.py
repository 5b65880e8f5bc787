from __future__ import annotations

from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.vectorwise import Vectorwise
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def cachegen_lmcache(recent: int, sinks: int) -> Pipeline:
    """CacheGen (Liu et al., 2024, arXiv 2310.07240) as LMCache 0.5 has it: without anchors and differences.

    Each entry is quantized against its token's largest, over all heads: 32 bins in the first 10 layers of the
    keys and the first 2 of the values, 16 in the others, which is what LMCache takes for every model it has no
    other numbers for. CacheGen's own repository has the same bins, as the middle of its three levels and for the
    7B models that it names. The symbols are LMCache's, to the last one.

    What differs. LMCache stores a table of 33 numbers of 16 bits for each layer, channel and 256 tokens, which
    is 40 % of what it writes; here two bytes describe a channel's distribution for the whole segment, with
    corrections where they pay. The coder is rANS, not arithmetic coding. A token's largest entry is kept in
    float16, not in the cache's dtype. Models of fewer than 10 layers get 32 bins throughout in LMCache, which
    the first 10 layers' share amounts to for keys; their values have 16 from the third layer on here.
    """
    code = Rans()
    return Pipeline(
        keys=(*common.window(sinks, recent), Vectorwise(bins=(32, 16), ends=(10,)), code),
        values=(*common.window(sinks, recent), Vectorwise(bins=(32, 16), ends=(2,)), code),
    )


RECIPE = Recipe(
    name="cachegen-lmcache",
    paper="2310.07240 CacheGen: KV Cache Compression and Streaming for Fast LLM Serving",
    summary="CacheGen as LMCache has it: no anchors, 32 and 16 bins",
    make=cachegen_lmcache,
    parameters={"recent": common.recent(), "sinks": common.sinks()},
)
