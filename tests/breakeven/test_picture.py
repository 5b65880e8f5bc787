"""The picture of given numbers: what never pays has a line of its own, and names are text, whatever is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from kvtool.report.plots.breakeven import breakeven
from kvtool.report.plots.standalone import document

SVG = "{http://www.w3.org/2000/svg}"


def variant(name: str, uses: Sequence[int | None]) -> dict[str, Any]:
    lengths = [
        {
            "tokens": tokens,
            "prefill_seconds": tokens / 1000,
            "transfer_seconds": 0.5,
            "load_seconds": 0.25,
            "uses": n,
        }
        for tokens, n in zip((256, 1024), uses, strict=True)
    ]
    return {"name": name, "saves_from": {"text": "saves time"}, "lengths": lengths}


def drawn(*variants: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(document(breakeven({"variants": list(variants)})))


def titles(root: ElementTree.Element) -> dict[str, str | None]:
    return {id: e.findtext(f"{SVG}title") for e in root.iter() if (id := e.get("id"))}


def test_what_never_pays_is_said_to() -> None:
    root = drawn(variant("raw", [None, 1200]), variant("klt", [3, 2]))
    shown = titles(root)
    assert shown["breakeven-uses-0-0"] == "raw, 256 tokens: never"
    assert shown["breakeven-uses-0-1"] == "raw, 1,024 tokens: 1200 uses"
    assert shown["breakeven-use-1-1"] == "klt, 1,024 tokens: 0.75 s"
    assert shown["breakeven-use-prefill-0"] == "prefill, no cache, 256 tokens: 0.256 s"
    assert "never" in {text.text for text in root.iter(f"{SVG}text")}


def test_where_all_pay_there_is_no_such_line() -> None:
    root = drawn(variant("raw", [2, 2]), variant("klt", [3, 2]))
    assert "never" not in {text.text for text in root.iter(f"{SVG}text")}


def test_names_are_text() -> None:
    root = drawn(variant("raw", [2, 2]), variant('a<b>&"c":bits=4', [3, None]))
    assert titles(root)["breakeven-uses-1-1"] == 'a<b>&"c":bits=4, 1,024 tokens: never'
    assert 'a<b>&"c":bits=4: a use saves time.' in (root.findtext(f"{SVG}desc") or "")
