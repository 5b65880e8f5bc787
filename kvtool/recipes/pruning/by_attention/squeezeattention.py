from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def squeezeattention(**parameters: Any) -> Pipeline:
    """SqueezeAttention (Wang et al., 2024, arXiv 2404.04793).

    H2O's scores. Layers whose attention hardly changes the hidden states keep fewer tokens, and the others more. Layers
    fall into three groups by the cosine between hidden states before and after attention.

    What differs. The prefix is kept whole. The paper has other scores beside H2O's. Its groups come from k-means with
    random starts; here they are the best three of sorted cosines. What the third group keeps is near the authors'
    example.
    """
    return common.select("h2o", **parameters)


RECIPE = Recipe(
    name="squeezeattention",
    paper="2404.04793 SqueezeAttention: 2D Management of KV-Cache in LLM Inference via Layer-wise Optimal Budget",
    summary="H2O, with smaller budgets for layers that change little",
    make=squeezeattention,
    parameters=common.selection(layers="squeezeattention"),
    prunes=True,
)
