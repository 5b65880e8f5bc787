from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def vatp(**parameters: Any) -> Pipeline:
    """VATP: Value-Aware Token Pruning (Guo et al., 2024, arXiv 2406.12335).

    H2O's score, times the sum of the magnitudes of the token's value.

    What differs. The prefix is kept whole. The paper keeps the first 20 tokens of a prompt: `first` does that.
    """
    return common.select("h2o", values=True, **parameters)


RECIPE = Recipe(
    name="vatp",
    paper="2406.12335 Attention Score is not All You Need for Token Importance Indicator "
    "in KV Cache Reduction: Value Also Matters",
    summary="attention received, times the norm of the value",
    make=vatp,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
