from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def ada_kv(**parameters: Any) -> Pipeline:
    """Ada-KV (Feng et al., 2024, arXiv 2407.11550).

    SnapKV's scores. The heads of a layer share its budget by how many of its best tokens each has, a fifth of it
    equally. `heads=ada-kv` wraps the scores of other recipes in the same way.

    What differs. The prefix is kept whole. As with SnapKV no question is known.
    """
    return common.select("snapkv", **parameters)


RECIPE = Recipe(
    name="ada-kv",
    paper="2407.11550 Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    summary="SnapKV, with budgets of heads by their scores",
    make=ada_kv,
    parameters=common.selection(heads="ada-kv", layers="", first=0, last=0),
    prunes=True,
)
