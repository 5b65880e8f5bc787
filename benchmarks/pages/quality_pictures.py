"""Bits against KL and against retrieval, every row a labelled point, and the frontier as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from benchmarks.pages.frontier import KEPT, KL, Point, frontier, points
from kvtool.report.numbers import plain

INK, RECIPE, PEER, OURS, LINE = "#7d7d7d", "#2f8fd0", "#d9822b", "#1f9d6b", "#8a8a8a"
"""Colours that can be read on white and on black."""

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "kvtool",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

OURS_ARE = ("klt",)
"""Recipes of kvtool's own."""

PICTURES = ((KL, "bits against KL", "KL, nats per token"), (KEPT, "bits against retrieval", "retrieval kept"))

NEAR = 6
"""Points from a label that needs no line to its own."""

PLACES = sorted(
    ((dx, dy) for dx in (6, -6, 25, -25, 50, -50, 80, -80, 115, -115) for dy in range(-96, 97, 8)),
    key=lambda place: (place[0] ** 2 + 2 * place[1] ** 2, place),
)
"""Where a label may be, in points from its own, the nearest first; a negative first number is to the left."""


def draw(
    result: Mapping[str, Any], folder: Path, name: str, endings: Sequence[str] = ("svg",)
) -> list[tuple[str, Path]]:
    """What each picture shows, and its first file: ``name``-kl and ``name``-kept, with each of ``endings``."""
    made = []
    for axis, shows, label in PICTURES:
        drawn = points(result, axis)
        if not drawn:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(10, 8), layout="constrained")
            canvas = FigureCanvasAgg(figure)
            axes = figure.subplots()
            _axes(axes, axis, label)
            _points(axes, drawn)
            axes.legend(frameon=False, fontsize=8, loc="lower left")
            canvas.draw()
            figure.set_layout_engine("none")
            _labels(axes, canvas, drawn)
            first = save(figure, folder / f"{name}-{axis}", endings)
        made.append((f"{shows}, with the frontier", first))
    return made


def save(figure: Figure, stem: Path, endings: Sequence[str]) -> Path:
    """Saves ``figure`` with each of ``endings``, without a date, so that it is the same every time. Returns the first file."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in endings]
    for path in paths:
        is_svg = path.suffix == ".svg"
        figure.savefig(path, dpi=150, metadata={"Date": None} if is_svg else None, transparent=is_svg)
    return paths[0]


def _axes(axes: Axes, axis: str, label: str) -> None:
    axes.set(xscale="log", xlabel="bits per key or value, all bytes", ylabel=label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if axis == KL:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
    axes.grid(color=LINE, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def _points(axes: Axes, drawn: Sequence[Point]) -> None:
    line = frontier(drawn)
    axes.plot([p.bits for p in line], [p.shown for p in line], color=LINE, lw=1.4, label="frontier", zorder=1)
    groups = (
        ("kvtool's own", OURS, "D", lambda p: p.family in OURS_ARE),
        (
            "methods from papers, as recipes",
            RECIPE,
            "o",
            lambda p: p.family not in OURS_ARE and p.kind != "peer",
        ),
        ("other tools", PEER, "s", lambda p: p.kind == "peer"),
    )
    for label, colour, marker, belongs in groups:
        some = [point for point in drawn if belongs(point)]
        if some:
            x, y = [point.bits for point in some], [point.shown for point in some]
            axes.scatter(x, y, s=22, color=colour, marker=marker, label=label, zorder=2, linewidths=0)
    # Room for labels at both ends.
    low, high = min(p.bits for p in drawn), max(p.bits for p in drawn)
    axes.set_xlim(low / 1.6, high * 2.2)


def _labels(axes: Axes, canvas: FigureCanvasAgg, drawn: Sequence[Point]) -> None:
    """Each point's label, at the nearest place where it covers no other label and no point; none if there is no place."""
    renderer: Any = canvas.get_renderer()
    taken = [_box(axes, point) for point in drawn]
    inside = axes.get_window_extent(renderer)
    line = set(frontier(drawn))
    # The frontier's labels first: they get the nearest places.
    for point in sorted(drawn, key=lambda point: (point not in line, point.bits)):
        weight = "bold" if point in line else "normal"
        for dx, dy in PLACES:
            text = axes.annotate(
                point.label,
                (point.bits, point.shown),
                (dx, dy),
                textcoords="offset points",
                fontsize=6.5,
                weight=weight,
                va="center",
                ha="left" if dx > 0 else "right",
                arrowprops=_leader(dx) if dy or abs(dx) > NEAR else None,
            )
            text.update_positions(renderer)
            # Without the line that leads to it, which may cross others.
            box = Text.get_window_extent(text, renderer)
            fits = inside.containsx(box.x0) and inside.containsx(box.x1) and inside.containsy(box.y0)
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _leader(dx: int) -> dict[str, Any]:
    """A line from the label's near end to its point."""
    return {
        "arrowstyle": "-",
        "lw": 0.4,
        "color": LINE,
        "relpos": (0, 0.5) if dx > 0 else (1, 0.5),
        "shrinkA": 0,
    }


def _box(axes: Axes, point: Point) -> Any:
    x, y = axes.transData.transform((point.bits, point.shown))
    return Bbox.from_bounds(x - 3, y - 3, 6, 6)
