from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.matching import MatchAttention
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.recipes import common


def attention_matching(**parameters: Any) -> Pipeline:
    """Attention matching: Fast KV Compaction via Attention Matching (Zweiger et al., 2026, arXiv 2602.16284).

    Each head keeps a few keys. Each of these gets a bias, so that together they have the mass of attention of all
    keys, and a new value, by least squares, so that what is read from them is the same. Both are fitted over the
    queries of a text that is repeated, and of one that goes on.

    What differs. Keys are chosen by the attention of a text that goes on, as one of the paper's ways chooses them,
    and by KVzip's score, which is that of a text that looks things up; all heads have one budget. The paper's other
    way is orthogonal matching pursuit, and it finds budgets by head once for a model. Its reference queries are those
    of the repeated text, and of questions and answers that a model made up; here they are those of the repeated text,
    and the document's own, turned as if they came after it. Masses are fitted by multiplicative steps. Values are
    drawn a little to the kept tokens' own.
    """
    return common.select(parameters.pop("score"), MatchAttention, **parameters)


RECIPE = Recipe(
    name="attention-matching",
    paper="2602.16284 Fast KV Compaction via Attention Matching",
    summary="few tokens that stand for all: with biases, and values by least squares",
    make=attention_matching,
    parameters={
        "score": Parameter(
            "replayed-and-moved",
            ("replayed-and-moved", "kvzip"),
            "what tokens are chosen by: a repetition and a text that goes on, or a repetition alone",
        ),
        **common.selection(heads="across", layers="", first=0, last=0),
    },
    prunes=True,
)
