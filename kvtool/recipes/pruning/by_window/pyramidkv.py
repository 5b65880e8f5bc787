from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def pyramidkv(**parameters: Any) -> Pipeline:
    """PyramidKV (Cai et al., 2024, arXiv 2406.02069).

    SnapKV's scores. Budgets shrink from the first layer to the last, by the same number from each to the next.

    What differs. The prefix is kept whole. As with SnapKV no question is known.
    """
    return common.select("snapkv", **parameters)


RECIPE = Recipe(
    name="pyramidkv",
    paper="2406.02069 PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    summary="SnapKV, with smaller budgets for later layers",
    make=pyramidkv,
    parameters=common.selection(heads="uniform", layers="pyramid", first=0, last=0),
    prunes=True,
)
