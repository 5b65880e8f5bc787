"""When a cache pays: seconds of each use beside those of prefilling, and uses until it has paid, by length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from kvtool.report.breakeven import NEVER
from kvtool.report.numbers import Json, plain
from kvtool.report.plots import labels, style
from kvtool.report.plots.labels import Point
from kvtool.report.plots.svg import Picture, drawn

HEIGHT = 3.9  # inches
PREFILL = style.Series(style.MUTED, ".", "--")


@dataclass(frozen=True)
class Line:
    """A line of a panel. Its marks have the ids ``key``-0, -1, …, over which ``titles`` are shown."""

    key: str
    name: str
    look: style.Series
    points: Sequence[Point]
    titles: Sequence[str]


def breakeven(result: Json) -> Picture:
    """Two panels, side by side. Lines are variants, and are named by their index in ``result``.

    Marks have ids such as ``breakeven-use-0-2``, ``breakeven-use-prefill-2`` and ``breakeven-uses-0-2``.
    """
    variants: list[Json] = result["variants"]
    shown = [{"family": one["name"], "kind": "recipe" if n else "raw"} for n, one in enumerate(variants)]
    looks = list(style.series(shown).values())
    with style.styled():
        figure = style.figure(HEIGHT)
        left = _each_use(figure.add_axes((0.07, 0.13, 0.41, 0.79)), variants, looks)
        right = _uses(figure.add_axes((0.57, 0.13, 0.41, 0.79)), variants, looks)
        label = (
            "Charts of seconds of each use, and of uses until a cache has paid, against tokens of the text"
        )
        says = " ".join(f"{variant['name']}: a use {variant['saves_from']['text']}." for variant in variants)
        titles = {f"{line.key}-{n}": title for line in (*left, *right) for n, title in enumerate(line.titles)}
        return Picture(drawn(figure, "breakeven", label, titles), says)


def _each_use(axes: Axes, variants: Sequence[Json], looks: Sequence[style.Series]) -> list[Line]:
    """Seconds of transfer and load. A cache saves time where its line is below the dashed one of prefill."""
    name = "breakeven-use"
    prefill = [one["prefill_seconds"] for one in variants[0]["lengths"]]
    lines = [_line(f"{name}-prefill", "prefill, no cache", PREFILL, variants[0], prefill, " s")]
    for n, (variant, look) in enumerate(zip(variants, looks, strict=True)):
        seconds = [one["transfer_seconds"] + one["load_seconds"] for one in variant["lengths"]]
        lines.append(_line(f"{name}-{n}", variant["name"], look, variant, seconds, " s"))
    every = [second for line in lines for _, second in line.points]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    decades = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    _axes(
        axes,
        name,
        "each use, seconds; below prefill it saves time",
        lines,
        decades,
        [plain(decade) for decade in decades],
    )
    return lines


def _uses(axes: Axes, variants: Sequence[Json], looks: Sequence[style.Series]) -> list[Line]:
    """Uses until a cache has paid. Those that never do are on a line of their own, at the top."""
    name = "breakeven-uses"
    counts = [one["uses"] for variant in variants for one in variant["lengths"]]
    power = math.ceil(math.log10(max([10, *(uses for uses in counts if uses)])))
    never = 3 * 10.0**power
    digits = (1, 2, 5) if power < 3 else (1,)
    places = [*(float(d * 10**n) for n in range(power) for d in digits), 10.0**power]
    texts = [plain(place) for place in places]
    if None in counts:
        places, texts = [*places, never], [*texts, NEVER]
        axes.axhline(never, color=style.MUTED, lw=0.8, ls=(0, (1, 3)))
    lines = []
    for n, (variant, look) in enumerate(zip(variants, looks, strict=True)):
        # A logarithmic axis has no zero. Nothing that was measured costs none.
        uses = [never if one["uses"] is None else max(1, one["uses"]) for one in variant["lengths"]]
        lines.append(_line(f"{name}-{n}", variant["name"], look, variant, uses, " uses"))
    _axes(axes, name, "uses until it has paid", lines, places, texts)
    return lines


def _line(key: str, name: str, look: style.Series, variant: Json, values: Sequence[float], unit: str) -> Line:
    tokens = [one["tokens"] for one in variant["lengths"]]
    never = [unit == " uses" and one["uses"] is None for one in variant["lengths"]]
    titles = [
        f"{name}, {count:,} tokens: {NEVER if is_never else plain(value) + unit}"
        for count, value, is_never in zip(tokens, values, never, strict=True)
    ]
    return Line(key, name, look, list(zip(tokens, values, strict=True)), titles)


def _axes(
    axes: Axes, name: str, title: str, lines: Sequence[Line], places: Sequence[float], texts: Sequence[str]
) -> None:
    """Lines with their marks and names; both axes are logarithmic, the upright one with ``texts`` at ``places``."""
    tokens = [count for count, _ in lines[0].points]
    axes.set(xscale="log", yscale="log", xlabel="tokens of the text")
    axes.set_title(title)
    axes.set(xlim=(tokens[0] / 1.3, tokens[-1] * 1.3), ylim=(places[0] / 1.25, places[-1] * 1.25))
    style.ticks(axes, "x", name, tokens, [f"{count:,}" for count in tokens])
    style.ticks(axes, "y", name, places, texts)
    axes.grid(axis="y")
    for n, line in enumerate(lines):
        colour, (x, y) = line.look.colour, zip(*line.points, strict=True)
        axes.plot(x, y, color=colour, lw=1.2, ls=line.look.dash)
        # The first are larger and hollow: others may lie on them.
        size, fill = (11.0, style.PAPER) if line.look.colour == style.INK else (6.5, colour)
        for index, point in enumerate(line.points):
            mark: dict[str, Any] = {
                "marker": line.look.marker,
                "ms": size,
                "color": colour,
                "mfc": fill,
                "mew": 1.2,
            }
            axes.plot(
                *([value] for value in point), ls="none", zorder=3 + n, gid=f"{line.key}-{index}", **mark
            )
    covered = [point for line in lines for point in labels.along(axes, line.points)]
    labels.place(axes, name, [(line.name, line.look.colour, line.points) for line in lines], covered)
