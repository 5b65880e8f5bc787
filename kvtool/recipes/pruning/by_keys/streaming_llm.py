from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def streaming_llm(**parameters: Any) -> Pipeline:
    """StreamingLLM (Xiao et al., 2023, arXiv 2309.17453).

    The first four tokens stay, and of the others the last.

    What differs. Positions stay as they were, where the paper counts them within the cache. The prefix is kept whole.
    """
    return common.select("streaming-llm", **parameters)


RECIPE = Recipe(
    name="streaming-llm",
    paper="2309.17453 Efficient Streaming Language Models with Attention Sinks",
    summary="the first and the last tokens",
    make=streaming_llm,
    parameters=common.selection(heads="uniform", layers="", first=4, last=0),
    prunes=True,
)
