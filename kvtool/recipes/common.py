"""Shared by recipes: windows of tokens kept in 16 bits, and the parameters that most have."""

from __future__ import annotations

from kvtool.codecs.recipe import Parameter
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.window import Window


def window(sinks: int, recent: int) -> tuple[Stage, ...]:
    """The first and last tokens apart, or nothing where none are kept."""
    return (Window(sinks=sinks, recent=recent),) if sinks or recent else ()


def sinks(default: int = 0) -> Parameter:
    return Parameter(default, range(1 << 31), "first tokens kept in 16 bits")


def recent(default: int = 0) -> Parameter:
    return Parameter(default, range(1 << 31), "last tokens kept in 16 bits")
