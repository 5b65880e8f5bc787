from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.clipped import ClippedGroup
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Between, Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.channels import Reorder
from kvtool.codecs.transform.hadamard import Hadamard
from kvtool.codecs.transform.unrope import Unrope
from kvtool.recipes import common

ALL_HEADS = 65535


def rotatekv(bits: int, group: int, heads: int, clip: float, recent: int, sinks: int) -> Pipeline:
    """RotateKV: Accurate and Robust 2-Bit KV Cache Quantization for LLMs via Outlier-Aware Adaptive Rotations
    (Su et al., 2025, arXiv 2501.16383).

    Keys as they were before RoPE are turned by a Walsh–Hadamard rotation over ``heads`` heads at a time; then
    their channels are reordered across all heads, so that those that share a scale are alike. Values are turned
    head by head. Both are quantized per token, min–max, over groups of ``group`` channels of a head, at 2 to 4
    bits. Both ends of a group's range are multiplied by ``clip`` first, and what lies beyond is clipped: by 0.8 at 2
    bits and not at 3 and 4, as the authors' code sets it for keys and values (utils.py, RotateKV_fake_quant/fake_quant.py
    in ZunhaiSu/RotateKV). Attention sinks are kept in 16 bits. The order of steps, ``heads`` and ``group`` are those of
    the authors' code.

    What differs. The authors order channels by their sum over a calibration set, signs kept; here it is their
    mean in the document itself, and the order is stored, a byte or two for each channel of a layer.
    They find sinks in every layer again, as the tokens of the 20 largest hidden activations, most of which fall
    on a few tokens; a cache holds no hidden states, so here they are the first ``sinks`` tokens. Their zero is a whole
    number of steps, so that 0 is one of the codes; here it is the group's smallest entry, in float16. At 3 bits their
    code divides a range by 8 and has 7 steps, so it loses the upper end; here it has 7. Rotations change signs at random
    before they sum, and where channels are no power of two, two rotations overlap. The values' rotation is undone on
    decoding instead of being folded into the weights.
    """
    window = common.window(sinks, recent)
    clip = clip or (0.8 if bits <= 2 else 1.0)
    quantizer: Stage = Group(bits=bits, group=group, axis="channel")
    if clip < 1:
        quantizer = ClippedGroup(bits=bits, group=group, axis="channel", clip=clip)
    quantized = quantizer, Pack()
    return Pipeline(
        keys=(*window, Unrope(), Hadamard(heads=heads), Reorder(by="signed", heads=ALL_HEADS), *quantized),
        values=(*window, Hadamard(), *quantized),
    )


RECIPE = Recipe(
    name="rotatekv",
    paper="2501.16383 RotateKV: Accurate and Robust 2-Bit KV Cache Quantization for LLMs via Outlier-Aware Adaptive "
    "Rotations",
    summary="keys before RoPE, rotated and reordered, per token",
    make=rotatekv,
    parameters={
        "bits": Parameter(2, range(1, 9), "bits per code; the paper has 2, 3 and 4"),
        "group": Parameter(128, range(1, 1 << 31), "channels of a token that share a scale"),
        "heads": Parameter(4, range(1, 1 << 16), "key heads that are rotated together"),
        "clip": Parameter(
            0.0, Between(0, 1), "share of each group's range that codes cover; 0 is the authors' choice"
        ),
        "recent": common.recent(),
        "sinks": common.sinks(4),
    },
)
