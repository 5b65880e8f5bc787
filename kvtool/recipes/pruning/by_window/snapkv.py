from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def snapkv(**parameters: Any) -> Pipeline:
    """SnapKV (Li et al., 2024, arXiv 2404.14469).

    A token is worth the attention of the segment's last 32 tokens, smoothed over its neighbours. These 32 stay.

    What differs. The prefix is kept whole. The paper's last tokens are those of a question. Here none is known, and
    they are the document's.
    """
    return common.select("snapkv", **parameters)


RECIPE = Recipe(
    name="snapkv",
    paper="2404.14469 SnapKV: LLM Knows What You are Looking for Before Generation",
    summary="tokens that the last tokens attend to",
    make=snapkv,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
