from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def cake(**parameters: Any) -> Pipeline:
    """CAKE (Qin et al., 2025, arXiv 2503.12491).

    A token is worth the mean and the variance over the last tokens of the attention that they pay to it. Layers whose
    attention is spread widely, and changes much, get the larger budgets.

    What differs. The prefix is kept whole. As with SnapKV no question is known.
    """
    return common.select("cake", **parameters)


RECIPE = Recipe(
    name="cake",
    paper="2503.12491 CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences",
    summary="attention and its variance, with budgets of layers by how it is spread",
    make=cake,
    parameters=common.selection(heads="uniform", layers="cake", first=0, last=0),
    prunes=True,
)
