from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.recipe import Between, Parameter, Recipe
from kvtool.codecs.transform.channels import KeepChannels


def think(drop: float, wide: int) -> Pipeline:
    """ThinK: Thinner Key Cache by Query-Driven Pruning (Xu et al., 2024, arXiv 2407.21018).

    Each head leaves out the share `drop` of its key channels: those whose keys, times the queries of the last 32
    tokens, add least to the scores of attention. They are channels of keys as they are cached, after RoPE. The last
    32 tokens keep all channels. Values stay as they are.

    What differs. It saves bytes on disk and in transfer, and no memory: loaded keys have zeros where channels are
    missing, so that any attention reads them. The authors' code holds narrow keys in memory. Query heads that share a
    key head choose its channels together. The prefix is kept whole.
    """
    return Pipeline(keys=(KeepChannels(drop, wide), Pack()))


RECIPE = Recipe(
    name="think",
    paper="2407.21018 ThinK: Thinner Key Cache by Query-Driven Pruning",
    summary="key channels that matter least to the last queries are left out",
    make=think,
    parameters={
        "drop": Parameter(0.4, Between(0.0, 0.95), "share of the key channels that are left out"),
        "wide": Parameter(32, range(1 << 31), "last tokens that keep all channels"),
    },
    narrows=True,
)
