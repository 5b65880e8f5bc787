from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.heads import CompensateHeads
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def razorattention(**parameters: Any) -> Pipeline:
    """RazorAttention (Tang et al., 2024, arXiv 2407.15891).

    Heads that attend to an earlier copy of a token, or to what followed it, keep all tokens. The others keep the first
    and the last tokens, and one that stands for all that they drop: its key and value are their means, and a bias
    gives it their number.

    What differs. The prefix is kept whole. The paper classifies heads once for a model, on random tokens; here it is
    the document that is repeated. Heads that keep all are as many as `keep` allows. The paper's window is a fifth of
    the text, and at least 4,000 tokens, which is more than many documents have.
    """
    keep, first, last = (parameters[name] for name in ("keep", "first", "last"))
    return Pipeline(prune=CompensateHeads("razorattention", keep, first, last))


RECIPE = Recipe(
    name="razorattention",
    paper="2407.15891 RazorAttention: Efficient KV Cache Compression Through Retrieval Heads",
    summary="heads that look up copies keep all, others the ends",
    make=razorattention,
    parameters=common.share_and_ends(first=4, last=256),
    prunes=True,
)
