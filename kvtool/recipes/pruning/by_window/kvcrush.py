from __future__ import annotations

from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.groups import SelectGroups
from kvtool.codecs.recipe import Between, Parameter, Recipe
from kvtool.recipes import common


def kvcrush(**parameters: Any) -> Pipeline:
    """KVCrush (Jha et al., 2025, arXiv 2503.00022).

    SnapKV's scores choose three quarters of the tokens that stay. The others stand for those that are dropped: tokens
    are sorted by which heads find them important, and taken at equal steps.

    What differs. The prefix is kept whole. The paper wraps several scores; here it is SnapKV's. The authors' code works
    on pages of 16 tokens, here it is single ones, and has other anchors to sort by.
    """
    return common.select("snapkv", SelectGroups, **parameters)


RECIPE = Recipe(
    name="kvcrush",
    paper="2503.00022 KVCrush: Key value cache size-reduction using similarity in head-behaviour",
    summary="SnapKV, and one token for each group that heads treat alike",
    make=kvcrush,
    parameters={
        **common.selection(),
        "share": Parameter(0.25, Between(0.0, 1.0), "share of what stays that stands for others"),
    },
    prunes=True,
)
