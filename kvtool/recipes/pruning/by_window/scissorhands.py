from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def scissorhands(**parameters: Any) -> Pipeline:
    """Scissorhands (Liu et al., 2023, arXiv 2305.17118).

    Tokens that mattered before will matter again. A token is worth the number of the segment's last tokens that give it
    at least an equal share of their attention.

    What differs. The prefix is kept whole. The paper counts over the last 400 tokens each time that the cache is full;
    here it is the last 32 tokens, once. It keeps recent tokens too: `last` does that. Which layers keep more is not
    searched for.
    """
    return common.select("scissorhands", **parameters)


RECIPE = Recipe(
    name="scissorhands",
    paper="2305.17118 Scissorhands: Exploiting the Persistence of Importance Hypothesis "
    "for LLM KV Cache Compression at Test Time",
    summary="tokens that many of the last tokens attend to",
    make=scissorhands,
    parameters=common.selection(),
    prunes=True,
)
