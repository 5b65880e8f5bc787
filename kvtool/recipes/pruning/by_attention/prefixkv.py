from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def prefixkv(**parameters: Any) -> Pipeline:
    """PrefixKV (Wang et al., 2024, arXiv 2412.03409).

    Each layer keeps as many tokens as hold the same share of its attention; that share is found by bisection.

    What differs. The prefix is kept whole. The paper is about models that see pictures; here it prunes text.
    """
    return common.select("h2o", **parameters)


RECIPE = Recipe(
    name="prefixkv",
    paper="2412.03409 PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need "
    "for Efficient Generation",
    summary="attention received, with sizes of layers from one share of it",
    make=prefixkv,
    parameters=common.selection(heads="uniform", layers="prefixkv", first=0, last=0),
    prunes=True,
)
