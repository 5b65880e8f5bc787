from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.lloyd_max import LloydMax
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.transform.hadamard import Hadamard
from kvtool.recipes import common


def turboquant(bits: int, objective: Literal["prod", "mse"], recent: int, sinks: int) -> Pipeline:
    """TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate (Zandieh et al., 2025, arXiv
    2504.19874).

    Each vector is turned at random, which makes its entries about normally distributed whatever it was, and
    these are quantized one by one with the code book that is best for that distribution (Lloyd–Max), under
    the vector's length in 16 bits. Nothing is calibrated, and nothing but the length is stored beside the codes.
    Values take ``bits`` bits so (the paper's MSE variant). Keys take ``bits`` - 1, and one for the sign of each
    entry of what is left, turned again (QJL; the paper's ``"prod"`` variant): attention scores then have no
    bias, at the price of a larger error than all bits in the code book give (``objective="mse"``). With
    SmolLM2-135M, a prefix of 400 tokens and 3 to 5 bits, ``"mse"`` gave half the KL divergence of what follows.

    What differs. Rotations are random signs under a Walsh–Hadamard transform, where the paper has a QR
    decomposition of a Gaussian matrix, and for QJL the Gaussian matrix itself: an orthonormal one of which the
    inner products are as unbiased and vary less. The code book is the normal distribution's, to which the
    paper's Beta distribution tends; few channels make the difference. The paper's 2.5 and 3.5 bits come of two
    instances, the larger channels with a bit more; here all channels have the same. Signs cost a second length.
    """
    first = (*common.window(sinks, recent), Hadamard(seed=0))
    quantized = {"mse": LloydMax(bits=bits), "prod": LloydMax(bits=max(bits - 1, 1), sketch=True, seed=1)}
    return Pipeline(keys=(*first, quantized[objective], Pack()), values=(*first, quantized["mse"], Pack()))


RECIPE = Recipe(
    name="turboquant",
    paper="2504.19874 TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate",
    summary="random rotation, Lloyd–Max code book, signs of what is left",
    make=turboquant,
    parameters={
        "bits": Parameter(3, range(2, 9), "bits per code; the paper has 2.5 and 3.5"),
        "objective": Parameter(
            "prod", ("prod", "mse"), "of keys: inner products without bias, or least error"
        ),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
