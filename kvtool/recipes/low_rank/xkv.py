from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.cross_layer_svd import CrossLayerSvd
from kvtool.codecs.transform.unrope import Unrope
from kvtool.recipes import common

RANKS = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 9 / 64, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)


def xkv(
    layers: int, rank_keys: float, rank_values: float, bits: int, group: int, recent: int, sinks: int
) -> Pipeline:
    """xKV: Cross-Layer SVD for KV-Cache Compression (Chang et al., 2025, arXiv 2503.18893).

    The caches of ``layers`` neighbouring layers lie side by side and are cut down to one low rank by a singular
    value decomposition of the prompt's own: coefficients of each token in a basis that the layers share, and the
    basis as each layer sees it, in 16 bits. Keys are taken before their rotation (RoPE), as in the authors' code.
    ``rank_keys`` and ``rank_values`` are fractions of the full rank, layers times heads times channels: the
    authors' first commands have 4 layers and ranks 512 and 768 of 4096, that is 1/8 and 3/16; later ones 3/32
    and 9/64. ``bits`` quantizes the coefficients, each over ``group`` tokens; 0 leaves them in 16 bits, as the
    paper does but in one experiment.

    What differs. Where there are fewer tokens than the rank, the rank is the number of tokens; a group that has
    fewer layers has a rank lower in proportion. The paper assumes long prompts: the basis is stored with each
    segment, and where tokens are not many times the rank, it is much of what is stored. That one experiment of
    the authors quantizes groups of 32 coefficients of a token, behind a Hadamard transform; here each coefficient
    has its own scale over 32 tokens, since singular values make coefficients unequal, and nothing is transformed.
    """

    def side(rank: float, *before: Stage) -> tuple[Stage, ...]:
        quantize = (Group(bits=bits, group=group),) if bits else ()
        return *common.window(sinks, recent), *before, CrossLayerSvd(rank=rank), *quantize, Pack()

    return Pipeline(keys=side(rank_keys, Unrope()), values=side(rank_values), layers=layers)


RECIPE = Recipe(
    name="xkv",
    paper="2503.18893 xKV: Cross-Layer SVD for KV-Cache Compression",
    summary="four layers in one low-rank basis",
    make=xkv,
    parameters={
        "layers": Parameter(4, range(2, 257), "neighbouring layers that share coefficients"),
        "rank_keys": Parameter(1 / 8, RANKS, "rank of the keys, of layers times heads times channels"),
        "rank_values": Parameter(3 / 16, RANKS, "rank of the values, of layers times heads times channels"),
        "bits": Parameter(0, range(9), "bits per code of a coefficient; 0 leaves them in 16 bits"),
        "group": Parameter(32, range(1, 1 << 31), "tokens that share a coefficient's scale"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
