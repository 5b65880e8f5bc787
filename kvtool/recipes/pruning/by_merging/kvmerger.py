from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.merging import MergeRuns
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def kvmerger(**parameters: Any) -> Pipeline:
    """KVMerger (Wang et al., 2024, arXiv 2407.08454).

    Neighbouring tokens whose keys are similar are merged into the one that received the most attention, the nearer
    their keys are to its own, the more each counts.

    What differs. The prefix is kept whole. The paper joins what is above a threshold; here the most similar are joined
    until `keep` is reached. Written from what others say of the paper: neither it nor its code could be read.
    """
    keep, first, last = (parameters[name] for name in ("keep", "first", "last"))
    return Pipeline(prune=MergeRuns(keep, first, last))


RECIPE = Recipe(
    name="kvmerger",
    paper="2407.08454 Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks",
    summary="neighbours with similar keys as one token",
    make=kvmerger,
    parameters=common.share_and_ends(),
    prunes=True,
)
