from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def corm(**parameters: Any) -> Pipeline:
    """CORM (Dai et al., 2024, arXiv 2404.15949).

    Tokens count that any of the last tokens gave more than its mean weight; those with more such votes first.

    What differs. The prefix is kept whole. The paper keeps all of these, whatever their number; here `keep` decides.
    """
    return common.select("corm", **parameters)


RECIPE = Recipe(
    name="corm",
    paper="2404.15949 CORM: Cache Optimization with Recent Message for Large Language Model Inference",
    summary="tokens that any of the last tokens found important",
    make=corm,
    parameters=common.selection(heads="uniform", layers="", first=0, last=0),
    prunes=True,
)
