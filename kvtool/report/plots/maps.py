"""Maps: where the error lies, layer by head, and where retrieval fails, depth by length. The stronger the colour, the worse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kvtool.report import words
from kvtool.report.numbers import Json, plain
from kvtool.report.plots import style
from kvtool.report.plots.svg import Picture, drawn

# Of middling lightness, so that its shades show on a light page and on a dark one.
LOSS = (201, 90, 26)
ABSENT = (128, 128, 128, 70)
STRONGEST = 0.7  # so that a number on top can be read


def error_map(candidate: Json, index: int, most: float) -> Picture:
    """Error of each layer and head, keys beside values. The images have the ids ``error-<index>-keys`` and ``-values``.

    A pixel's opacity is the square root of its error over ``most``: small errors can be told apart, large ones
    do not hide them, and all candidates can be compared.
    """
    name = f"error-{index}"
    sides = [grid(candidate["relative_error"][side]) for side in ("keys", "values")]
    with style.styled():
        height = min(4.0, max(1.0, 0.24 * sides[0].shape[0]))
        total = height + 0.75
        figure = style.figure(total)
        for n, (side, errors) in enumerate(zip(("keys", "values"), sides, strict=True)):
            axes = figure.add_axes((0.055 + 0.435 * n, 0.45 / total, 0.405, height / total))
            _image(axes, shades(errors, most), f"{name}-{side}")
            axes.set_title(side)
            axes.set_xlabel("layer")
            _counted(axes, errors.shape)
            if n == 0:
                axes.set_ylabel("head")
            else:
                axes.tick_params(labelleft=False)
        _scale(figure.add_axes((0.925, 0.45 / total, 0.018, height / total)), most)
        label = f"Heat map of error by layer and head: {candidate['name']}"
        return Picture(drawn(figure, name, label, {}), words.error(candidate))


def retrieval_map(raw: Json, candidate: Json, index: int) -> Picture:
    """Score at each depth and length, raw beside the candidate. Cells have the ids ``map-<index>-<raw|own>-<n>``."""
    name = f"map-{index}"
    cells = candidate["retrieval"]["by_length_and_depth"]
    lengths, depths = (sorted({cell[key] for cell in cells}) for key in ("length", "depth"))
    with style.styled():
        height = max(1.1, 0.3 * len(depths))
        total = height + 0.75
        figure = style.figure(total)
        titles = {}
        for n, (side, summary) in enumerate((("raw", raw), ("own", candidate))):
            axes = figure.add_axes((0.075 + 0.47 * n, 0.45 / total, 0.43, height / total))
            axes.set(xlim=(0, len(lengths)), ylim=(len(depths), 0), xlabel="length of the context, tokens")
            axes.set_title(style.shortened("raw" if n == 0 else candidate["name"], 50))
            columns, rows = ([i + 0.5 for i in range(len(axis))] for axis in (lengths, depths))
            style.ticks(axes, "x", f"{name}-{side}", columns, [f"{x:,}" for x in lengths])
            shares = [f"{100 * depth:.0f} %" if n == 0 else "" for depth in depths]
            style.ticks(axes, "y", f"{name}-{side}", rows, shares)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if n == 0:
                axes.set_ylabel("depth")
            for i, cell in enumerate(summary["retrieval"]["by_length_and_depth"]):
                if cell["length"] in lengths and cell["depth"] in depths:
                    gid = f"{name}-{side}-{i}"
                    column, row = lengths.index(cell["length"]), depths.index(cell["depth"])
                    _cell(axes, column, row, cell["score"], gid)
                    titles[gid] = f"{cell['score']:.2f} of {cell['questions']} questions"
        says = words.lost_where(raw, candidate)
        label = "Map of retrieval by length of the context and depth of the fact"
        return Picture(drawn(figure, name, f"{label}: {candidate['name']} beside raw", titles), says)


def grid(layers: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """``[heads, layers]``, not a number where a layer has fewer heads than another."""
    errors = np.full((max(map(len, layers)), len(layers)), np.nan)
    for layer, heads in enumerate(layers):
        errors[: len(heads), layer] = heads
    return errors


def shades(errors: NDArray[np.float64], most: float) -> NDArray[np.uint8]:
    """RGBA pixels ``[heads, layers, 4]``."""
    pixels = np.empty((*errors.shape, 4), np.uint8)
    share = np.sqrt(np.clip(np.nan_to_num(errors) / most, 0, 1))
    pixels[..., :3], pixels[..., 3] = LOSS, np.rint(255 * share)
    pixels[np.isnan(errors)] = ABSENT
    return pixels


def _image(axes: Axes, pixels: NDArray[np.uint8], gid: str) -> None:
    # Drawn pixel by pixel, an image of few bytes; thousands of rectangles would take megabytes.
    axes.imshow(pixels, interpolation="none", aspect="auto", gid=gid)
    axes.spines[:].set_visible(True)


def _counted(axes: Axes, shape: tuple[int, ...]) -> None:
    for axis, count in ((axes.yaxis, shape[0]), (axes.xaxis, shape[1])):
        step = next(step for step in (1, 2, 5, 10, 20, 50) if count <= 12 * step or step == 50)
        axis.set_ticks(range(0, count, step))


def _scale(axes: Axes, most: float) -> None:
    """The errors that the shades stand for."""
    values = np.linspace(most, 0, 256)[:, None]
    axes.imshow(shades(values, most), interpolation="none", aspect="auto", extent=(0, 1, 0, most))
    axes.set_xticks([])
    places = [0, most / 4, most / 2, most]
    axes.set_yticks(places, [plain(float(f"{place:.2g}")) for place in places])
    axes.yaxis.tick_right()
    axes.spines[:].set_visible(True)


def _cell(axes: Axes, column: int, row: int, score: float, gid: str) -> None:
    shade = to_rgba(style.LOSS, STRONGEST * (1 - score))
    corner = column + 0.02, row + 0.03
    axes.add_patch(Rectangle(corner, 0.96, 0.94, fc=shade, ec=style.GRID, lw=0.6, gid=gid))
    axes.text(column + 0.5, row + 0.5, f"{score:.2f}", ha="center", va="center", color=style.INK)
