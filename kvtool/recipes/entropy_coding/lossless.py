from __future__ import annotations

from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Parameter, Recipe


def lossless(level: int) -> Pipeline:
    """The very bits: tensors split into byte planes, each under zstd. No paper; the idea is bitshuffle's."""
    return Pipeline(keys=(Planes(level=level),), values=(Planes(level=level),))


RECIPE = Recipe(
    name="lossless",
    summary="the very bits: byte planes under zstd",
    make=lossless,
    parameters={"level": Parameter(3, range(1, 23), "zstd's level")},
)
