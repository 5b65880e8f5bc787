"""Shared by recipes: windows of tokens kept in 16 bits, and the parameters that most have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.prune.budgets.table import SHARES
from kvtool.codecs.prune.select import HEADS, Select
from kvtool.codecs.recipe import Between, Parameter
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.window import Window


def window(sinks: int, recent: int) -> tuple[Stage, ...]:
    """The first and last tokens apart, or nothing where none are kept."""
    return (Window(sinks=sinks, recent=recent),) if sinks or recent else ()


def sinks(default: int = 0) -> Parameter:
    return Parameter(default, range(1 << 31), "first tokens kept in 16 bits")


def recent(default: int = 0) -> Parameter:
    return Parameter(default, range(1 << 31), "last tokens kept in 16 bits")


def selection(
    heads: str = "uniform", layers: str = "", first: int = 0, last: int = 0, whole: int = 0
) -> Mapping[str, Parameter]:
    """Parameters of a recipe that keeps the tokens with the best scores, with a paper's own choices as defaults."""
    return {
        **share_and_ends(first, last),
        "heads": Parameter(heads, tuple(HEADS), "how they are shared out among heads"),
        "layers": Parameter(layers, ("", *SHARES), "how they are shared out among layers; empty: all alike"),
        "whole": Parameter(whole, range(1 << 16), "first layers that keep all tokens, out of the same share"),
    }


def share_and_ends(first: int = 0, last: int = 0) -> Mapping[str, Parameter]:
    """The parameters of every recipe that leaves out tokens."""
    tokens = range(1 << 31)
    return {
        "keep": Parameter(0.5, Between(1e-3, 1.0), "share of the tokens that stay"),
        "first": Parameter(first, tokens, "first tokens that always stay"),
        "last": Parameter(last, tokens, "last tokens that always stay"),
    }


def select(
    score: str,
    stage: type[Select] = Select,
    *,
    keep: float,
    heads: str,
    layers: str,
    first: int,
    last: int,
    whole: int,
    values: bool = False,
    also_whole: tuple[int, ...] = (),
    **more: Any,
) -> Pipeline:
    """The pipeline that keeps the tokens with the best scores, and stores them as they are."""
    layers_whole = (*range(whole), *also_whole)
    return Pipeline(prune=stage(score, heads, layers, keep, first, last, values, layers_whole, **more))
