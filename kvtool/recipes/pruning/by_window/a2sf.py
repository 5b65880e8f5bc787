from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def a2sf(**parameters: Any) -> Pipeline:
    """A2SF (Jo and Shin, 2024, arXiv 2407.20485).

    A token is worth the attention that it received, but what earlier tokens gave counts less, by a factor of 0.95 for
    each step. So early tokens, which all others see, have no head start.

    What differs. The prefix is kept whole. The sum is over the segment's last 32 tokens; of those before, the factor
    leaves a fifth or less.
    """
    return common.select("a2sf", **parameters)


RECIPE = Recipe(
    name="a2sf",
    paper="2407.20485 A2SF: Accumulative Attention Scoring with Forgetting Factor for Token Pruning in Transformer Decoder",
    summary="attention received, that of early tokens forgotten",
    make=a2sf,
    parameters=common.selection(),
    prunes=True,
)
