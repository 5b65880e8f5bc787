from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def kvzip(**parameters: Any) -> Pipeline:
    """KVzip (Kim et al., 2025, arXiv 2505.23416).

    The model is asked to repeat the text, and is fed it again. A token is worth the largest weight that any repeated
    token gives it, in any query head of its key head. The best of all layers and heads stay: they share one budget.

    What differs. The prefix is kept whole. The authors prune it too, but for its first tokens. They repeat chunks of
    2,048 tokens; here a segment is repeated whole, or in passages that fit the model's context.
    """
    return common.select("kvzip", **parameters)


RECIPE = Recipe(
    name="kvzip",
    paper="2505.23416 KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
    summary="tokens that are looked up when the text is repeated",
    make=kvzip,
    parameters=common.selection(heads="across", layers="", first=0, last=0),
    prunes=True,
)
