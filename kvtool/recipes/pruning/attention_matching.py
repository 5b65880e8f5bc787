from __future__ import annotations

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.matching import MatchAttention
from kvtool.codecs.recipe import Recipe
from kvtool.recipes import common


def attention_matching(keep: float, budget: str, first: int, last: int) -> Pipeline:
    """Attention matching: Fast KV Compaction via Attention Matching (Zweiger et al., 2026, arXiv 2602.16284).

    Each head keeps a few keys. Each of these gets a bias, so that the mass of attention is that of all keys, and a new value,
    by least squares, so that what is read is the same: both over the queries of a text that is repeated.

    What differs. Keys are chosen by KVzip's score and budget over all heads; the paper chooses them by attention or by
    orthogonal matching pursuit, and has budgets by head that are found once for a model. Reference queries are those of the
    repeated text alone. Masses are fitted by multiplicative steps, and values are drawn a little to the kept tokens' own.
    """
    return Pipeline(prune=MatchAttention("kvzip", budget, keep, first, last))


RECIPE = Recipe(
    name="attention-matching",
    paper="2602.16284 Fast KV Compaction via Attention Matching",
    summary="tokens that stand for all: with biases, and values by least squares",
    make=attention_matching,
    parameters=common.selection("across", first=0, last=0),
    prunes=True,
)
