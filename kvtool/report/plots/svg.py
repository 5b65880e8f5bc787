"""A matplotlib figure as inline SVG: the page's colours and font, ids of its own, names for people who cannot see it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from kvtool.report.plots import style

SVG, XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
REFERENCE = re.compile(r"url\(#([^)]+)\)")
STAND_IN = re.compile("|".join(style.VARIABLES))


@dataclass(frozen=True)
class Picture:
    """``says`` is what it shows, in a sentence or two of plain text."""

    svg: Markup
    says: str


def drawn(figure: Figure, name: str, label: str, titles: Mapping[str, str]) -> Markup:
    """``figure`` as an SVG element. Ids begin with ``name``; ``titles`` are shown over the marks with these ids.

    An artist's ``gid`` becomes an id, and must begin with ``name`` for ids to be unique on a page.
    """
    root = _saved(figure)
    for parent in root.iter():
        for child in [c for c in parent if c.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    referred = _referred(root)
    for element in root.iter():
        _rename(element, name, referred)
        _recolour(element)
        if title := titles.get(element.get("id", "")):
            child = ElementTree.Element(f"{{{SVG}}}title")
            child.text = title
            element.insert(0, child)
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib.update({"role": "img", "aria-label": label, "focusable": "false"})
    # Any & < > and quotes in texts and attributes are escaped by the serializer.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _saved(figure: Figure) -> ElementTree.Element:
    buffer = BytesIO()
    with warnings.catch_warnings():
        # The browser has glyphs for names that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return ElementTree.fromstring(buffer.getvalue())


def _referred(root: ElementTree.Element) -> set[str]:
    """Ids that something within the picture refers to."""
    ids = {element.get(XLINK, "").removeprefix("#") for element in root.iter()}
    return ids.union(*(REFERENCE.findall(v) for element in root.iter() for v in element.attrib.values()))


def _rename(element: ElementTree.Element, name: str, referred: set[str]) -> None:
    id = element.get("id", "")
    if id and id in referred:
        element.set("id", f"{name}-{id}")
    elif id and not id.startswith(f"{name}-"):
        del element.attrib["id"]
    if XLINK in element.attrib:
        target = element.attrib.pop(XLINK)
        element.set("href", f"#{name}-{target[1:]}" if target.startswith("#") else "".join(target.split()))
    for attribute, value in element.attrib.items():
        if "url(#" in value:
            element.set(attribute, REFERENCE.sub(rf"url(#{name}-\1)", value))


def _recolour(element: ElementTree.Element) -> None:
    look = element.get("style")
    if look:
        look = FONT_FAMILY.sub("", look)
        element.set("style", STAND_IN.sub(lambda match: style.VARIABLES[match[0]], look))
