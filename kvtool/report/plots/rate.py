"""Rate and distortion: what a bit less costs, in predictions and in retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from kvtool.report import words
from kvtool.report.columns import BY_KEY
from kvtool.report.numbers import TINY, Json, is_finite
from kvtool.report.plots import labels, style
from kvtool.report.plots.svg import Picture, drawn

Point = tuple[float, float]


def rate_distortion(shown: Sequence[Json]) -> Picture | None:
    """KL against bits per value, both logarithmic. Each mark has the id ``rate-<index in shown>``."""
    measured = {i: c for i, c in enumerate(shown) if is_finite(c["kl"])}
    if not measured:
        return None
    positive = [c["kl"]["value"] for c in measured.values() if c["kl"]["value"] >= TINY] or [1e-3]
    bottom = 10.0 ** math.floor(math.log10(min(positive)))
    # A logarithmic axis has no zero: it gets a line of its own, a decade below the rest.
    zero = bottom / 10
    top = 10.0 ** math.ceil(math.log10(max([c["kl"]["high"] for c in measured.values()] + [10 * bottom])))
    reaches_zero = any(c["kl"]["low"] < bottom for c in measured.values())

    def at(kl: float) -> float:
        return kl if kl >= bottom else max(kl, zero) if kl >= TINY else zero

    with style.styled():
        figure = style.figure(4.9)
        axes = figure.add_axes((0.075, 0.11, 0.915, 0.84))
        axes.set(xscale="log", yscale="log", xlabel="bits per value")
        axes.set_title("KL, nats per token")
        _bits_axis(axes, "rate", [c["bits_per_value"] for c in measured.values()])
        decades = [10.0**n for n in range(round(math.log10(bottom)), round(math.log10(top)) + 1)]
        rounded = any(0 < c["kl"]["value"] < TINY for c in measured.values())
        texts = [f"{decade:.10f}".rstrip("0").rstrip(".") for decade in decades]
        if reaches_zero:
            decades, texts = [zero, *decades], ["≈ 0" if rounded else "0", *texts]
        axes.set_ylim(decades[0] / 1.6, top * 1.1)
        style.ticks(axes, "y", "rate", decades, texts)
        axes.grid(axis="y")
        axes.axhline(zero, color=style.MUTED, lw=0.8, ls=(0, (1, 3)))
        points = {i: (c["bits_per_value"], at(c["kl"]["value"])) for i, c in measured.items()}
        ranges = {i: (at(c["kl"]["low"]), at(c["kl"]["high"])) for i, c in measured.items()}
        _families(axes, "rate", shown, points, ranges, set(points), zero)
        says = words.rate(shown)
        label = "Chart of KL against bits per value, both axes logarithmic"
        return Picture(drawn(figure, "rate", label, _titles("rate", measured, "bits", "kl")), says)


def retrieval_kept(shown: Sequence[Json]) -> Picture | None:
    """Share of the raw cache's retrieval that is kept, against ratio. Each mark has the id ``kept-<index in shown>``."""
    asked = {i: c for i, c in enumerate(shown) if c["retrieval"]}
    measured = {i: c for i, c in asked.items() if is_finite(c["retrieval"]["retention"])}
    if not measured:
        return None
    kept = {i: c["retrieval"]["retention"] for i, c in measured.items()}
    least = min(max(0.0, estimate["low"]) for estimate in kept.values())
    bottom = max(0, math.floor(least * 10 - 0.2) * 10)
    with style.styled():
        figure = style.figure(4.3)
        axes = figure.add_axes((0.075, 0.125, 0.915, 0.82))
        axes.set(xscale="log", xlabel="ratio: times smaller than 16-bit numbers")
        axes.set_title("retrieval kept, %")
        _bits_axis(axes, "kept", [c["ratio"] for c in measured.values()])
        style.ticks(axes, "y", "kept", range(bottom, 101, 20 if bottom < 40 else 10))
        # Room for the names of those that lose nothing, which are many.
        axes.set_ylim(bottom - 2, 100 + 0.22 * (102 - bottom))
        axes.grid(axis="y")
        axes.axhline(100, color=style.MUTED, lw=0.8)
        points = {i: (c["ratio"], 100 * kept[i]["value"]) for i, c in measured.items()}
        ranges = {i: (100 * max(0.0, share["low"]), 100 * share["high"]) for i, share in kept.items()}
        differs = {i for i, c in measured.items() if c["retrieval"]["differs_from_raw"]}
        _families(axes, "kept", shown, points, ranges, differs, 100)
        says = words.kept(shown)
        label = "Chart of the share of retrieval kept against ratio"
        return Picture(drawn(figure, "kept", label, _titles("kept", measured, "ratio", "kept")), says)


def _families(
    axes: Axes,
    name: str,
    shown: Sequence[Json],
    points: dict[int, Point],
    ranges: dict[int, Point],
    filled: set[int],
    level: float,
) -> None:
    """One line for each family, a bar and a mark for each candidate, and the families' names beside them.

    The marks of ``filled`` are filled, others hollow. A horizontal line is drawn at ``level`` already.
    """
    looks, named = style.series(shown), []
    covered = labels.along(axes, [(x, level) for x in axes.get_xlim()])
    for family, look in looks.items():
        members = sorted((points[i], i) for i in points if shown[i]["family"] == family)
        if not members:
            continue
        line = [point for point, _ in members]
        axes.plot(*zip(*line, strict=True), color=look.colour, lw=1.1, ls=look.dash)
        for (x, y), i in members:
            axes.vlines(x, *ranges[i], color=look.colour, lw=1.4, gid=f"{name}-range-{i}")
            mark: dict[str, Any] = {
                "color": look.colour,
                "marker": look.marker,
                "ms": 6.5,
                "gid": f"{name}-{i}",
            }
            mark |= {"mec": style.PAPER, "mew": 0.8} if i in filled else {"mfc": style.PAPER, "mew": 1.3}
            axes.plot([x], [y], ls="none", zorder=3, **mark)
            covered += [(x, end) for end in ranges[i]]
        covered += labels.along(axes, line)
        named.append((family, look.colour, line))
    labels.place(axes, name, named, covered)


def _bits_axis(axes: Axes, name: str, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.25, high * 1.25)
    style.ticks(axes, "x", name, [2.0**n for n in range(-8, 13) if low / 1.25 <= 2.0**n <= high * 1.25])


def _titles(name: str, measured: dict[int, Json], *keys: str) -> dict[str, str]:
    """The text over each mark: the candidate, and both its numbers."""
    titles = {}
    for i, candidate in measured.items():
        cells = [(BY_KEY[key], BY_KEY[key].cell(candidate)) for key in keys]
        numbers = [
            f"{c.title} {n.text}{f' ({n.interval})' if n.interval else ''} {c.unit}".strip() for c, n in cells
        ]
        titles[f"{name}-{i}"] = f"{candidate['name']}: {', '.join(numbers)}"
    return titles
