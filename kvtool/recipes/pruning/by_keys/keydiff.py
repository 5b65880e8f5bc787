from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def keydiff(**parameters: Any) -> Pipeline:
    """KeyDiff (Park et al., 2025, arXiv 2504.15364).

    Each head keeps the tokens whose keys have the smallest cosine to the mean of the directions of all its keys.

    What differs. The prefix is kept whole. The paper evicts block by block while it prefills; here a segment is
    pruned once, when all of it is known.
    """
    return common.select("keydiff", **parameters)


RECIPE = Recipe(
    name="keydiff",
    paper="2504.15364 KeyDiff: Key Similarity-Based KV Cache Eviction",
    summary="tokens whose keys are unlike the others",
    make=keydiff,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
