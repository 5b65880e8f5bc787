from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def l2_norm(**parameters: Any) -> Pipeline:
    """A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (Devoto et al., 2024, arXiv 2406.11430).

    Later tokens attend most to keys with small norms. Each head keeps those with the smallest.

    What differs. The prefix is kept whole. The paper leaves the first two layers alone in some of its experiments;
    here all layers are pruned.
    """
    return common.select("l2-norm", **parameters)


RECIPE = Recipe(
    name="l2-norm",
    paper="2406.11430 A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    summary="tokens whose keys have small norms",
    make=l2_norm,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
