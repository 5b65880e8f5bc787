"""KL, and answers kept, by the share of the tokens that stays: a line for each method, the best in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.pages.quality_pictures import LINE, SETTINGS, save
from kvtool.report.numbers import plain

COLOURS = ("#1f9d6b", "#2f8fd0", "#d9822b", "#c0508f", "#8a6fd1", "#a08a2a")
"""Of the best methods, the best first. They can be read on white and on black."""

LEAST_SHARES = 2
"""Fewer make no line."""

Line = tuple[str, Sequence[float], Sequence[float]]
"""A method, shares in ascending order, and what is drawn at each."""

PICTURES = (
    ("kl", "KL by the share of the tokens that stays", "KL, nats per token"),
    ("kept", "answers kept by the share of the tokens that stays", "share of right answers kept"),
)


def draw(
    result: Mapping[str, Any], folder: Path, name: str, endings: Sequence[str] = ("svg",)
) -> list[tuple[str, Path]]:
    """What each picture shows, and its first file: ``name``-kl and ``name``-kept, with each of ``endings``."""
    made = []
    for measure, shows, label in PICTURES:
        lines = _lines(result, measure)
        if len({share for _, shares, _ in lines for share in shares}) < LEAST_SHARES:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(8, 5.5), layout="constrained")
            axes = figure.subplots()
            _axes(axes, lines, measure, label)
            _draw(axes, lines, best_first(lines, least=measure == "kl")[: len(COLOURS)])
            first = save(figure, folder / f"{name}-{measure}", endings)
        made.append((shows, first))
    return made


def best_first(lines: Sequence[Line], *, least: bool) -> list[str]:
    """Names of methods, those first that win most comparisons with others at the same share.

    ``least`` is whether small numbers are good.
    """
    at_share: dict[float, list[float]] = {}
    for _, shares, values in lines:
        for share, value in zip(shares, values, strict=True):
            at_share.setdefault(share, []).append(value)

    def won(line: Line) -> float:
        _, shares, values = line
        wins = sum(
            sum(other > value if least else other < value for other in at_share[share])
            for share, value in zip(shares, values, strict=True)
        )
        return wins / max(1, sum(len(at_share[share]) - 1 for share in shares))

    return [name for name, *_ in sorted(lines, key=won, reverse=True)]


def _lines(result: Mapping[str, Any], measure: str) -> list[Line]:
    found: dict[str, list[tuple[float, float]]] = {}
    for one in result["candidates"][1:]:
        about = result["rows"][one["name"]]
        estimate = one["kl"] if measure == "kl" else (one["retrieval"] or {}).get("retention")
        # What keeps all tokens has no place here, nor has a KL of nothing on a logarithmic axis.
        if about["keep"] < 1 and "+" not in one["family"] and estimate:
            if measure == "kl" and estimate["value"] <= 0:
                continue
            found.setdefault(about["method"], []).append((about["keep"], estimate["value"]))
    return [
        (name, [share for share, _ in sorted(points)], [value for _, value in sorted(points)])
        for name, points in found.items()
    ]


def _axes(axes: Axes, lines: Sequence[Line], measure: str, label: str) -> None:
    shares = sorted({share for _, some, _ in lines for share in some})
    axes.set(xscale="log", xlabel="share of the tokens that stays", ylabel=label)
    axes.xaxis.set_major_locator(FixedLocator(shares))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if measure == "kl":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
    axes.grid(color=LINE, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def _draw(axes: Axes, lines: Sequence[Line], best: Sequence[str]) -> None:
    others = [line for line in lines if line[0] not in best]
    for n, (_, shares, values) in enumerate(others):
        label = f"{len(others)} others" if not n else None
        axes.plot(shares, values, color=LINE, alpha=0.6, lw=0.8, marker=".", ms=3, label=label, zorder=1)
    by_name = {line[0]: line for line in lines}
    for name, colour in reversed(list(zip(best, COLOURS, strict=False))):
        _, shares, values = by_name[name]
        axes.plot(shares, values, color=colour, lw=1.8, marker="o", ms=4, label=name, zorder=2)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, loc="best")
