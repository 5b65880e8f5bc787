from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def expected_attention(**parameters: Any) -> Pipeline:
    """Expected Attention (Devoto et al., 2025, arXiv 2510.00636).

    Later queries are taken as normal, with the mean and the covariance of the segment's own before rotation. A token
    is worth the weight that they are expected to give it, times the norm of its value.

    What differs. The prefix is kept whole. Statistics are of the segment alone.
    """
    return common.select("expected-attention", **parameters)


RECIPE = Recipe(
    name="expected-attention",
    paper="2510.00636 Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
    summary="tokens that later queries are expected to attend to",
    make=expected_attention,
    parameters=common.selection(heads="ada-kv", layers="", first=0, last=0),
    prunes=True,
)
