from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def l2_norm(**parameters: Any) -> Pipeline:
    """A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (Devoto et al., 2024, arXiv 2406.11430).

    Later tokens attend most to keys with small norms. Each head keeps those with the smallest. The first two layers,
    where this does not hold, keep all tokens.

    What differs. The prefix is kept whole. `keep` is the share of all tokens, so that the other layers keep the fewer
    for the two; `whole=0` prunes all layers alike.
    """
    return common.select("l2-norm", **parameters)


RECIPE = Recipe(
    name="l2-norm",
    paper="2406.11430 A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    summary="tokens whose keys have small norms",
    make=l2_norm,
    parameters=common.selection(heads="uniform", layers="", whole=2),
    prunes=True,
)
