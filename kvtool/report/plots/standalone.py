"""A picture as an SVG file of its own, with the colours that the page would give it, light and dark."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from kvtool.report.plots.svg import SVG, Picture

FONT = 'svg { background: var(--paper); font-family: system-ui, "DejaVu Sans", sans-serif; }'


def document(picture: Picture) -> str:
    """The file's text. What the picture shows is its description, for people who cannot see it."""
    colours = files("kvtool.report").joinpath("colours.css").read_text("utf-8")
    head = f"<desc>{escape(picture.says)}</desc><style>{colours}{FONT}</style>"
    start, inner = str(picture.svg).split(">", 1)
    return f'{start} xmlns="{SVG}">{head}{inner}\n'
