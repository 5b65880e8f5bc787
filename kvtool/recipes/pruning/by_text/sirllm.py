from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def sirllm(**parameters: Any) -> Pipeline:
    """SirLLM (Yao et al., 2024, arXiv 2405.12528).

    The first four tokens stay, and of the others those that the model expected least. They are the same in all heads
    and layers.

    What differs. The prefix is kept whole. Positions stay as they were. The paper lets scores decay from turn to turn of
    a conversation; a document has one turn.
    """
    return common.select("sirllm", **parameters)


RECIPE = Recipe(
    name="sirllm",
    paper="2405.12528 SirLLM: Streaming Infinite Retentive LLM",
    summary="tokens that were unexpected",
    make=sirllm,
    parameters=common.selection(first=4),
    prunes=True,
)
