from __future__ import annotations

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def keydiff(keep: float, budget: str, first: int, last: int) -> Pipeline:
    """KeyDiff: Key Similarity-Based KV Cache Eviction (Park et al., 2025, arXiv 2504.15364).

    Each head keeps the tokens whose keys have the smallest cosine to the mean of all its keys' directions.

    What differs. The paper evicts block by block while it prefills; here a segment is pruned once, when all of it is
    known.
    """
    return common.select("keydiff", keep, budget, first, last)


RECIPE = Recipe(
    name="keydiff",
    paper="2504.15364 KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference "
    "in Resource-Constrained Environments",
    summary="tokens whose keys are unlike the others",
    make=keydiff,
    parameters=common.selection("uniform", first=0, last=0),
    prunes=True,
)
