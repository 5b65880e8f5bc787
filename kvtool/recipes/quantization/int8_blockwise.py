from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.blockwise import Blockwise
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.recipes import common


def int8_blockwise(block: int, recent: int, sinks: int) -> Pipeline:
    """Block-wise dynamic quantization, from 8-bit Optimizers via Block-wise Quantization (Dettmers et al., 2021,
    arXiv 2110.02861).

    bitsandbytes' 8-bit data type: entries over the largest magnitude of their ``block`` are rounded to 256
    numbers that lie the denser the smaller they are. Blocks are counted through the channels of a token, then
    its neighbours, as bitsandbytes does with a tensor; 256 is what its optimizers use.

    What differs. The paper quantizes optimizer states, in blocks of 2048. The magnitudes are kept in the
    cache's own 16 bits (float16 for float32), where bitsandbytes has float32. Codes are the nearest, as
    bitsandbytes' are on GPUs; its table for CPUs now and then takes another, where two are about equally near.
    """
    stages = (*common.window(sinks, recent), Blockwise(data_type="int8", block=block), Pack())
    return Pipeline(keys=stages, values=stages)


RECIPE = Recipe(
    name="int8-blockwise",
    paper="2110.02861 8-bit Optimizers via Block-wise Quantization",
    summary="bitsandbytes' 8-bit dynamic code book, by blocks",
    make=int8_blockwise,
    parameters={
        "block": Parameter(256, range(1, 1 << 16), "entries that share a largest magnitude"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
