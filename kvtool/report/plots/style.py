"""How pictures look. Colours are stand-ins, which ``svg.drawn`` replaces by the page's CSS variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from kvtool.report.numbers import Json, plain

INK, MUTED, GRID, PAPER, LOSS, BAR, *HUES = (f"#0100{n:02x}" for n in range(13))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    LOSS: "var(--loss)",
    BAR: "var(--bar)",
    **{hue: f"var(--series-{n})" for n, hue in enumerate(HUES, 1)},
}
SIZE = 9.0  # points; a point is 4/3 CSS pixels at the pictures' natural size
WIDTH = 9.0  # inches

# Each marker's bounding box has the data point at its middle. Seven colours and eight markers have no common
# divisor, so that pairs repeat only after 56 families.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "d")
DASHES = ("-", "--", "-.", ":")

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvtool",
    "text.parse_math": False,
    "font.size": SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.titlesize": SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "butt",
}


@dataclass(frozen=True)
class Series:
    colour: str
    marker: str
    dash: str


@contextmanager
def styled() -> Iterator[None]:
    """Within it, figures are made and drawn; no setting outside is changed."""
    with matplotlib.rc_context(RC):
        yield


def figure(height: float) -> Figure:
    """``height`` in inches. At 72 dots to an inch, positions are points, in matplotlib as in the SVG."""
    return Figure(figsize=(WIDTH, height), dpi=72)


def series(shown: Iterable[Json]) -> dict[str, Series]:
    """One look for each family, the same in every picture. The raw cache has the colour of text."""
    looks = zip(cycle(HUES), cycle(MARKERS), cycle(DASHES), strict=False)
    by_family: dict[str, Series] = {}
    for candidate in shown:
        family = candidate["family"]
        if family not in by_family:
            by_family[family] = Series(INK, "o", "-") if candidate["kind"] == "raw" else Series(*next(looks))
    return by_family


def ticks(
    axes: Axes, side: str, name: str, places: Iterable[float], texts: Iterable[str] | None = None
) -> None:
    """Ticks of the axis ``side`` (x or y) at ``places``, each with an id by which its position can be found."""
    places = list(places)
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter(list(texts) if texts is not None else [plain(p) for p in places]))
    for place, tick in zip(places, axis.get_major_ticks(len(places)), strict=True):
        tick.tick1line.set_gid(f"{name}-{side}-{place:.6g}")


def shortened(text: str, most: int = 26) -> str:
    """Names may be of any length; the table has them whole. Both ends tell them apart: recipe and parameter."""
    text = " ".join(text.split())
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"
