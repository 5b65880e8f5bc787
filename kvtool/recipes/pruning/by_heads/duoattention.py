from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.heads import SelectHeads
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def duoattention(**parameters: Any) -> Pipeline:
    """DuoAttention (Xiao et al., 2024, arXiv 2410.10819).

    Some heads look far back, and keep all tokens. The others keep the first 64 and the last 256.

    What differs. The prefix is kept whole. The paper trains a gate for each head; here, as in kvpress, a head is
    classified by where its mean query looks among copies of its mean key. Heads that keep all are as many as `keep`
    allows.
    """
    keep, first, last = (parameters[name] for name in ("keep", "first", "last"))
    return Pipeline(prune=SelectHeads("duoattention", keep, first, last))


RECIPE = Recipe(
    name="duoattention",
    paper="2410.10819 DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
    summary="heads that look far back keep all, others the ends",
    make=duoattention,
    parameters=common.share_and_ends(first=64, last=256),
    prunes=True,
)
