from __future__ import annotations

from kvtool.codecs.entropy.pages import Pages
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.recipe import Parameter, Recipe

WHOLE = 16
"""The bits that stand for keys and values as they are."""


def quest(page: int, bits: int, group: int) -> Pipeline:
    """Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference (Tang et al., 2024, arXiv 2406.10774).

    Tokens in pages of ``page``, and for each page and channel the smallest and the largest key. From these a question's
    queries bound the scores that any token of the page can have, and ``kvtool ask --read`` fetches the pages with the
    largest bounds alone. Nothing is left out of the file: read whole, it gives every token.

    With ``bits`` below 16, keys and values are quantized as in KIVI (arXiv 2402.02750), keys over the tokens of a page and
    values over ``group`` channels. The keys' scales and zeros then are the bounds, and nothing is stored beside them.

    What differs. The paper chooses pages for each head and each query while it decodes, out of a cache in memory, and reads
    all for a prompt. Here all heads of a layer read the same pages, so that their bytes are in a row, and a question's tokens
    choose them together.
    """
    if bits == WHOLE:
        return Pipeline(keys=(Pages(page, bounds=True),), values=(Pages(page),))
    keys, values = Group(bits, page, "token"), Group(bits, group, "channel")
    return Pipeline(keys=(keys, Pages(page)), values=(values, Pages(page)))


RECIPE = Recipe(
    name="quest",
    paper="2406.10774 Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    summary="pages of tokens with bounds of their keys, for ask --read",
    make=quest,
    parameters={
        "page": Parameter(16, range(1, 1 << 12), "tokens of a page"),
        "bits": Parameter(WHOLE, (2, 4, 8, WHOLE), "bits per code; 16: keys and values as they are"),
        "group": Parameter(32, range(1, 1 << 16), "channels of values that share a scale"),
    },
)
