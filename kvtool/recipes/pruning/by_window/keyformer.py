from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def keyformer(**parameters: Any) -> Pipeline:
    """Keyformer (Adnan et al., 2024, arXiv 2403.09054).

    A token is worth the attention of the segment's last tokens, with Gumbel noise on their scores before the softmax:
    tokens that are dropped change the distribution, and noise makes up for that.

    What differs. The prefix is kept whole. The paper sums over all tokens of the prompt, and keeps a window of recent
    ones: `last` does that. The noise is always the same.
    """
    return common.select("keyformer", **parameters)


RECIPE = Recipe(
    name="keyformer",
    paper="2403.09054 Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference",
    summary="attention of the last tokens, with Gumbel noise",
    make=keyformer,
    parameters=common.selection(),
    prunes=True,
)
