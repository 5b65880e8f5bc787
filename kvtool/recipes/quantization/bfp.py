from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.block_float import BlockFloat
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.transform.channels import Reorder
from kvtool.recipes import common


def bfp(bits: int, block: int, recent: int, sinks: int) -> Pipeline:
    """Accurate Block Quantization in LLMs with Outliers (Trukhanov and Soloveychik, 2024, arXiv 2403.20137).

    Block floating point: ``block`` channels of a token share an exponent of 8 bits, set by the largest of them,
    and each has a mantissa of ``bits`` bits with its sign. Key channels are reordered so that the large ones
    share blocks, and cost no others their precision. The paper has mantissas of 4 bits in blocks of 32 to 128,
    and gains by the order at 32 and 64.

    What differs. The paper orders key channels once for a model, by the norms of the rows of the key
    projection, and permutes weights, so that nothing needs to be undone. Here each head's are ordered by their
    largest magnitude in this very cache, and the order is kept in the artifact: 6 bits for each of 64 channels.
    Keys are taken as they are in the cache, rotated. The paper has only keys at 4 bits; here values are too, in
    their own order. Its hardware formats are not modelled beyond mantissa and exponent. At 2 bits a mantissa
    saturates so soon that large channels are better apart, and the order does harm.
    """
    quantized = (BlockFloat(bits=bits, block=block), Pack())
    window = common.window(sinks, recent)
    return Pipeline(keys=(*window, Reorder(by="max"), *quantized), values=(*window, *quantized))


RECIPE = Recipe(
    name="bfp",
    paper="2403.20137 Accurate Block Quantization in LLMs with Outliers",
    summary="block floating point, key channels sorted by size",
    make=bfp,
    parameters={
        "bits": Parameter(4, range(2, 9), "bits per mantissa, its sign among them"),
        "block": Parameter(32, range(1, 1 << 16), "channels that share an exponent"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
