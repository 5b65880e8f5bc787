"""The picture of the packages and their imports, as SVG.

An arrow means "imports". Arrows that follow from others are left out: where a imports b and b imports c, an arrow from a to
c would add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape

from docsgen.imports import package_arrows, read_tree

WIDTH, ROW, HEIGHT, MARGIN = 1080, 84, 30, 24
CHARACTER = 8.2
"""Width of a letter in pixels, at 14 pixels' height."""


def page() -> str:
    return draw(package_arrows(read_tree().own_imports()))


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Each package's floor: one above the highest that it imports."""

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(below) for below in arrows[name]), default=-1)

    return {name: floor(name) for name in arrows}


def reduced(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """``arrows`` without those that lead where others lead too."""

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(arrows[name]).union(*(reached(below) for below in arrows[name]))

    return {
        name: {target for target in below if not any(target in reached(other) for other in below)}
        for name, below in arrows.items()
    }


def draw(arrows: Mapping[str, set[str]]) -> str:
    floor_of = floors(arrows)
    top = max(floor_of.values())
    rows = {level: sorted(name for name in arrows if floor_of[name] == level) for level in range(top + 1)}
    shown = reduced(arrows)
    rows = _ordered(rows, shown)
    boxes: dict[str, tuple[float, float, float]] = {}
    for level, names in rows.items():
        widths = [CHARACTER * len(name) + 24 for name in names]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(names) + 1)
        x = MARGIN + gap
        for name, width in zip(names, widths, strict=True):
            boxes[name] = (x, MARGIN + (top - level) * ROW, width)
            x += width + gap
    lines = [_arrow(boxes[name], boxes[target]) for name in sorted(shown) for target in sorted(shown[name])]
    shapes = [_box(name, *boxes[name]) for name in sorted(boxes)]
    height = 2 * MARGIN + top * ROW + HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="14">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#607080"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            *lines,
            *shapes,
            "</svg>\n",
        ]
    )


def _ordered(rows: dict[int, list[str]], shown: Mapping[str, set[str]]) -> dict[int, list[str]]:
    """Each row in the order of what it is tied to, so that fewer arrows cross: a few sweeps of barycentres."""
    for _ in range(8):
        for levels in (sorted(rows), sorted(rows, reverse=True)):
            place = {
                name: (n + 1) / (len(names) + 1) for names in rows.values() for n, name in enumerate(names)
            }
            for level in levels:
                rows[level] = sorted(rows[level], key=lambda name: (_centre(name, shown, place), name))
                place |= {name: (n + 1) / (len(rows[level]) + 1) for n, name in enumerate(rows[level])}
    return rows


def _centre(name: str, shown: Mapping[str, set[str]], place: Mapping[str, float]) -> float:
    tied = [place[other] for other in shown if name in shown[other]] + [place[other] for other in shown[name]]
    return sum(tied) / len(tied) if tied else place[name]


def _box(name: str, x: float, y: float, width: float) -> str:
    fill = {"codecs": "#dcefe0", "kernels": "#dcefe0", "base": "#eeeeee", "system": "#eeeeee"}.get(
        name, "#e3ecfa"
    )
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="5" fill="{fill}" stroke="#405060"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 20:.1f}" text-anchor="middle" fill="#102030">{escape(name)}</text>'
    )


def _arrow(source: tuple[float, float, float], target: tuple[float, float, float]) -> str:
    x0, y0 = source[0] + source[2] / 2, source[1] + HEIGHT
    x1, y1 = target[0] + target[2] / 2, target[1] - 2
    bend = (y1 - y0) / 2
    return (
        f'<path d="M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}" fill="none" '
        'stroke="#607080" marker-end="url(#tip)"/>'
    )
