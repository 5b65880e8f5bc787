"""Names beside the marks that they belong to, where they cover the least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kvtool.report.plots.style import MUTED, SIZE, shortened

RADII = (9.0, 15.0, 23.0, 33.0, 45.0)
ANGLES = 16
Point = tuple[float, float]
Points = NDArray[np.float64]  # [n, 2]


@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def holds(self, points: Points, margin: float) -> int:
        """How many of the points lie within, or nearer than ``margin``."""
        x, y = points.T
        across = (x > self.left - margin) & (x < self.right + margin)
        return int(np.count_nonzero(across & (y > self.bottom - margin) & (y < self.top + margin)))

    def meets(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def place(
    axes: Axes, name: str, named: Sequence[tuple[str, str, Sequence[Point]]], avoided: Sequence[Point]
) -> None:
    """Writes each of ``named``, (text, colour, points), beside one of its points.

    All points are in data coordinates; those ``avoided`` are better left uncovered. Call it when the axes' limits
    are set: positions are taken from them.
    """
    to_points = axes.transData.transform
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, frame.x1, frame.y1 + SIZE)
    marks = to_points([point for _, _, points in named for point in points])
    lines = to_points(avoided)
    taken: list[Box] = []
    for index, (text, colour, points) in enumerate(named):
        text = shortened(text)
        choices = [
            (_cost(box, radius, inside, marks, lines, taken), n, box, offset, point)
            for n, point in enumerate(points)
            for radius in RADII
            for offset in _ring(radius)
            for box in (_box(text, tuple(to_points(point)), offset),)
        ]
        _, _, box, offset, point = min(choices, key=lambda choice: choice[:2])
        taken.append(box)
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
        is_far = math.hypot(*offset) > RADII[0] + 1
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            ha=_side(offset),
            va="center",
            color=colour,
            gid=f"{name}-label-{index}",
            arrowprops=line if is_far else None,
        )


def along(axes: Axes, line: Sequence[Point]) -> list[Point]:
    """Points on a line, close enough for no letter to lie between two."""
    corners = axes.transData.transform(line)
    steps = np.linspace(0, 1, 60)[:, None]
    passed = [start + steps * (end - start) for start, end in pairwise(corners)]
    return [(float(x), float(y)) for part in passed for x, y in axes.transData.inverted().transform(part)]


def _ring(radius: float) -> list[Point]:
    turns = [2 * math.pi * n / ANGLES for n in range(ANGLES)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def _side(offset: Point) -> str:
    return "center" if abs(offset[0]) < 2 else "left" if offset[0] > 0 else "right"


def _box(text: str, point: Point, offset: Point) -> Box:
    # The browser's font is not known here; sans-serif letters are about half as wide as they are high.
    width, middle = 0.58 * SIZE * len(text), (point[0] + offset[0], point[1] + offset[1])
    left = middle[0] - {"center": width / 2, "left": 0.0, "right": width}[_side(offset)]
    return Box(left, middle[1] - 0.55 * SIZE, left + width, middle[1] + 0.55 * SIZE)


def _cost(box: Box, radius: float, inside: Box, marks: Points, lines: Points, taken: Sequence[Box]) -> float:
    across = box.left < inside.left or box.right > inside.right
    outside = across or box.top > inside.top or box.bottom < inside.bottom
    return (
        200 * outside
        + 60 * sum(box.meets(other) for other in taken)
        + 30 * box.holds(marks, 3.0)
        + 3 * box.holds(lines, 1.0)
        + 0.3 * radius
    )
