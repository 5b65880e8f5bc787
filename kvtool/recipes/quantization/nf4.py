from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.blockwise import Blockwise
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.recipes import common


def nf4(block: int, recent: int, sinks: int) -> Pipeline:
    """NF4, from QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023, arXiv 2305.14314).

    bitsandbytes' 4-bit data type: entries over the largest magnitude of their ``block`` are rounded to 16
    quantiles of the normal distribution, one of them 0. Blocks are counted through the channels of a token,
    then its neighbours, as bitsandbytes does with a weight; 64 is the paper's size.

    What differs. The paper quantizes weights. The magnitudes are kept in the cache's own 16 bits (float16 for
    float32), where bitsandbytes has float32 or, with double quantization, 8 bits under a second scale: for a
    16-bit cache, what comes back is what bitsandbytes gives, to the bit.
    """
    stages = (*common.window(sinks, recent), Blockwise(data_type="nf4", block=block), Pack())
    return Pipeline(keys=stages, values=stages)


RECIPE = Recipe(
    name="nf4",
    paper="2305.14314 QLoRA: Efficient Finetuning of Quantized LLMs",
    summary="bitsandbytes' 4-bit normal float, by blocks",
    make=nf4,
    parameters={
        "block": Parameter(64, range(1, 1 << 16), "entries that share a largest magnitude"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
