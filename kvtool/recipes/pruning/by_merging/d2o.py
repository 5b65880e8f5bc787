from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.merging import MergeSimilar
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def d2o(**parameters: Any) -> Pipeline:
    """D2O (Wan et al., 2024, arXiv 2406.13035).

    H2O's scores choose the tokens. Dropped tokens are merged into those with the most similar keys, unless they are
    unlike all. Layers whose attention is spread evenly keep more; the first two and the last keep all.

    What differs. The prefix is kept whole. The paper evicts while it generates, with a threshold of similarity that
    moves, and keeps recent tokens too: `last` does that. Layers that keep all tokens count
    towards `keep`, so that a small one is refused; `whole=0` treats all layers alike.
    """
    last_layer = (-1,) if parameters["whole"] else ()
    return common.select("h2o", MergeSimilar, also_whole=last_layer, **parameters)


RECIPE = Recipe(
    name="d2o",
    paper="2406.13035 D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models",
    summary="H2O, and what is dropped merged into the most similar",
    make=d2o,
    parameters=common.selection(layers="d2o", whole=2),
    prunes=True,
)
