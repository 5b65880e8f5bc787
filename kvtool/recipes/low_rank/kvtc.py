from __future__ import annotations

from typing import Literal

from kvtool.codecs.calibrate.kvtc import RATIOS, fit
from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy.deflate import Deflate
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.allocated import Allocated
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.pca import Pca
from kvtool.codecs.transform.unrope import Unrope
from kvtool.recipes import common


def kvtc(calibration: Calibration, ratio: int, sinks: int, recent: int) -> Pipeline:
    """KV Cache Transform Coding for Compact Storage in LLM Inference (Staniszewski and Łańcucki, 2025, arXiv 2511.01815).

    A token's keys of all layers and heads, before their rotation (RoPE), are one vector, and its values another.
    Each is written in the principal components of the model's caches, found once for the model. Components are cut
    into blocks of 1, 16, 64, 256 or 1024, and dynamic programming gives each block its bits, so that the squared
    error on the samples is least under the budget that ``ratio`` sets: 16 bits for each channel, divided by it.
    The components after the last block are dropped. Blocks are quantized uniformly, each token's with a scale and
    a zero of 16 bits, and the packed codes go through DEFLATE. The first ``sinks`` and the last ``recent`` tokens
    are left whole; ``ratio`` counts neither these nor what DEFLATE saves.

    What differs. Keys and values get the same budget each. Codes are integers of 1, 2, 4 or 8 bits, and components
    that get 16 are float16 without scale and zero; the authors have 8-bit floats as well. Blocks of 16 and more
    start at a multiple of a sixteenth of their size, and their errors are measured on 256 tokens of the samples.
    Tokens that are left whole go through DEFLATE with the codes, which loses nothing. Up to 8,192 channels (layers
    times heads times head size) the components are exact, unless few of them are wanted; beyond, they come of a
    randomised decomposition, as the paper's do. The basis is kept in 16 bits. Layers that differ in size from their
    neighbours have a basis of their own. The authors compress on a GPU (nvCOMP); zlib's stream is of that format.
    """

    def side(name: Literal["keys", "values"]) -> tuple[Stage, ...]:
        return Pca(calibration, name, ratio), Allocated(calibration, name, ratio), Deflate()

    window = common.window(sinks, recent)
    return Pipeline((*window, Unrope(), *side("keys")), (*window, *side("values")), layers=0)


RECIPE = Recipe(
    name="kvtc",
    paper="2511.01815 KV Cache Transform Coding for Compact Storage in LLM Inference",
    summary="all layers in the model's principal components, bits for each",
    make=kvtc,
    parameters={
        "ratio": Parameter(16, RATIOS, "of 16 bits to the stored ones, without DEFLATE and kept tokens"),
        "sinks": common.sinks(4),
        "recent": common.recent(128),
    },
    calibration="kvtc",
    fit=fit,
)
