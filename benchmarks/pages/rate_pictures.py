"""KL against ratio and retrieval against ratio, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.pages.rate_page import MOST_LOST, TARGETS
from kvtool.report.numbers import plain

LOOKS = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
)
"""Okabe and Ito's colours, which the colour-blind can tell apart, each with a marker of its own."""

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "kvtool",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
RATIOS = (1, 2, 5)


def draw(
    found: Mapping[str, Any], folder: Path, name: str, endings: Sequence[str] = ("svg",)
) -> list[tuple[str, Path]]:
    """What each picture shows, and its first file: ``name``-kl and ``name``-retrieval, with each of ``endings``."""
    made = []
    looks = dict(zip(dict.fromkeys(c["family"] for c in found["candidates"]), LOOKS * 4, strict=False))
    pictures = [("kl", "KL against ratio", _distortion)]
    if found["retrieval"]:
        pictures.append(("retrieval", "Retrieval against ratio", _retrieval))
    for short, shows, onto in pictures:
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(7.5, 4.2), layout="constrained")
            onto(figure.subplots(), found, looks)
            paths = [folder / f"{name}-{short}.{ending}" for ending in endings]
            for path in paths:
                metadata = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(path, dpi=150, metadata=metadata)
        made.append((shows, paths[0]))
    return made


def _distortion(axes: Axes, found: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> None:
    for target in TARGETS:
        axes.axhline(target, color="0.6", lw=0.8, ls=":")
        axes.annotate(
            f"{target:g}", (1, target), (3, 0), ("axes fraction", "data"), "offset points", va="center"
        )
    shown = [c for c in found["candidates"] if c["kl"] and c["kl"]["value"] > 0]
    for family, (colour, marker) in looks.items():
        _curve(axes, family, colour, marker, [(c["ratio"], c["kl"]) for c in shown if c["family"] == family])
    axes.set(xscale="log", yscale="log", xlabel="ratio", ylabel="KL, nats per token")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
    _ratios(axes)


def _retrieval(axes: Axes, found: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> None:
    raw, *others = found["retrieval"]
    axes.axhspan(raw["score"]["value"] - MOST_LOST, raw["score"]["value"], color="0.9", lw=0)
    axes.axhline(raw["score"]["value"], color="0.2", lw=0.8)
    axes.annotate(
        "raw", (1, raw["score"]["value"]), (3, 0), ("axes fraction", "data"), "offset points", va="center"
    )
    for family, (colour, marker) in looks.items():
        _curve(
            axes, family, colour, marker, [(c["ratio"], c["score"]) for c in others if c["family"] == family]
        )
    axes.set(xscale="log", xlabel="ratio", ylabel="share of answers that are right")
    axes.set_ylim(bottom=0)
    _ratios(axes)


def _curve(
    axes: Axes, family: str, colour: str, marker: str, points: Sequence[tuple[float, Mapping[str, float]]]
) -> None:
    if not points:
        return
    points = sorted(points, key=lambda point: point[0])
    x, y = [ratio for ratio, _ in points], [of["value"] for _, of in points]
    spread = [[of["value"] - of["low"] for _, of in points], [of["high"] - of["value"] for _, of in points]]
    axes.errorbar(
        x, y, spread, label=family, color=colour, marker=marker, ms=4.5, lw=1.4, elinewidth=0.7, alpha=0.9
    )


def _ratios(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=RATIOS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
