from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.lloyd_max import LloydMax
from kvtool.codecs.quantize.split_lloyd_max import SplitLloydMax
from kvtool.codecs.recipe import Between, Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.hadamard import Hadamard
from kvtool.recipes import common


def turboquant(bits: float, objective: Literal["prod", "mse"], recent: int, sinks: int) -> Pipeline:
    """TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate (Zandieh et al., 2025, arXiv
    2504.19874).

    Each vector is turned at random, which makes its entries about normally distributed whatever it was, and
    these are quantized one by one with the code book that is best for that distribution (Lloyd–Max), under
    the vector's length in 16 bits. Nothing is calibrated, and nothing but the length is stored beside the codes.
    That is the paper's MSE variant. Values always have it, and by default keys too. In the paper's ``"prod"`` variant
    one of a key's bits is the sign of each entry of what is left, turned again (QJL): attention scores then have no
    bias, at the price of a larger error than all bits in the code book give. The paper does not say which variant its
    KV caches have.

    Where ``bits`` is no whole number, its fraction is the share of the channels that take one bit more. These are the
    longest of each head over all tokens, and have a rotation and a length of their own, as in section 4.3 of the paper.
    There 32 of 128 channels take 3 bits and the others 2. The paper calls that 2.5 bits, but its own sum is 2.25: it is
    ``bits=2.25`` here. At ``bits=2.5`` it is half of the channels.

    What differs. We know of no code of the authors. The paper does not say how outliers are chosen; their length is what
    QJL's code takes (models/llama3_utils_qjl.py in amirzandieh/QJL). Rotations are random signs under a Walsh–Hadamard
    transform, where the paper has a QR decomposition of a Gaussian matrix, and for QJL the Gaussian matrix itself: an
    orthonormal one of which the inner products are as unbiased and vary less. The code book is the normal
    distribution's, to which the paper's Beta distribution tends; few channels make the difference. Signs cost a second
    length.
    """
    window = common.window(sinks, recent)
    whole, share = int(bits), round(bits % 1, 9)

    def side(sketch: bool) -> tuple[Stage, ...]:
        # A sketch takes one of the bits.
        coded = whole - sketch
        if share:
            return *window, SplitLloydMax(bits=coded, share=share, sketch=sketch), Pack()
        return *window, Hadamard(seed=0), LloydMax(bits=coded, sketch=sketch, seed=1), Pack()

    return Pipeline(keys=side(objective == "prod"), values=side(False))


RECIPE = Recipe(
    name="turboquant",
    paper="2504.19874 TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate",
    summary="random rotation, Lloyd–Max code book",
    make=turboquant,
    parameters={
        "bits": Parameter(3.0, Between(2, 8), "bits per code; of 2.25, a quarter of the channels take 3"),
        "objective": Parameter(
            "mse", ("mse", "prod"), "of keys: least error, or inner products without bias"
        ),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
