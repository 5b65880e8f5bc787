from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.merge_layers import MergeLayers
from kvtool.recipes import common


def minicache(
    bits: int, group: int, start: int, towards: int, retained: int, recent: int, sinks: int
) -> Pipeline:
    """MiniCache: KV Cache Compression in Depth Dimension for Large Language Models (Liu et al., 2024, arXiv
    2405.14366).

    From ``start`` percent of the model's depth on, neighbouring layers share the direction of each key and value
    vector, which lies ``towards`` percent of the way from the lower layer's to the upper layer's (spherical
    interpolation), and each keeps its own length; the ``retained`` percent of the tokens whose directions differ
    most stay unmerged, in 16 bits. It does not matter that keys are rotated: a rotation that two layers share
    rotates what lies between them. The rest, merged or not, is quantized as in KIVI: keys per channel over groups
    of ``group`` tokens, values per token over groups of ``group`` channels; the paper's best compression is at 4
    bits. ``bits=0`` only merges.

    What differs. The paper retains tokens by a threshold on the distance of their directions, 5 % of the way
    between the smallest and the largest; how many these are depends on the content, and a planned size cannot:
    here it is a fixed share, as the paper's own count of bytes assumes. Directions and lengths are each head's
    own, where that count has one length for each token; a token's distance is the mean over its heads, for keys
    and for values apart. That 60 percent lean to the upper layer, not the lower, is taken from the code that xKV's
    authors have of this method. Directions are not brought back to length 1 after quantization. The 16-bit window
    that KIVI has is ``recent``, here 0. Where neighbouring layers do not point the same way, what is merged is
    mostly lost: look at the error first.
    """

    def side(axis: Literal["token", "channel"]) -> tuple[Stage, ...]:
        merge = MergeLayers(start=start / 100, t=towards / 100, retained=retained / 100)
        quantize = (Group(bits=bits, group=group, axis=axis),) if bits else ()
        return *common.window(sinks, recent), merge, *quantize, Pack()

    return Pipeline(keys=side("token"), values=side("channel"), layers=2)


RECIPE = Recipe(
    name="minicache",
    paper="2405.14366 MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
    summary="deep neighbouring layers share directions, 4 bits",
    make=minicache,
    parameters={
        "bits": Parameter(4, range(9), "bits per code; 0 merges without quantizing"),
        "group": Parameter(32, range(1, 1 << 31), "tokens (keys) or channels (values) that share a scale"),
        "start": Parameter(50, range(101), "percent of the model's depth from which layers are merged"),
        "towards": Parameter(60, range(101), "percent of the way from the lower layer to the upper"),
        "retained": Parameter(5, range(101), "percent of the tokens that stay unmerged"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
