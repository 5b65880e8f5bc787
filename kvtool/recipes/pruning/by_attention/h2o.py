from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def h2o(**parameters: Any) -> Pipeline:
    """H2O: Heavy-Hitter Oracle (Zhang et al., 2023, arXiv 2306.14048).

    A token is worth the attention that it received from all of the segment's tokens, summed.

    What differs. The prefix is kept whole. The paper evicts while it generates, and gives half of its budget to
    recent tokens: `last` does that.
    """
    return common.select("h2o", **parameters)


RECIPE = Recipe(
    name="h2o",
    paper="2306.14048 H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    summary="tokens that received most attention",
    make=h2o,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
