from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.merging import MergeNearest
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def elastic_cache(**parameters: Any) -> Pipeline:
    """Elastic Cache (Liu et al., 2024, arXiv 2407.18121).

    The tokens of a layer that received the most attention stay, the same in all heads. Each becomes the mean of itself
    and the dropped tokens that are nearest to it in the text.

    What differs. The prefix is kept whole. The paper is about models that see pictures, and keeps a fixed distance
    while it generates; here it is the prompt's part alone, on text.
    """
    return common.select("elastic-cache", MergeNearest, **parameters)


RECIPE = Recipe(
    name="elastic-cache",
    paper="2407.18121 Efficient Inference of Vision Instruction-Following Models with Elastic Cache",
    summary="H2O for all heads alike, and neighbours averaged",
    make=elastic_cache,
    parameters=common.selection(first=4),
    prunes=True,
)
