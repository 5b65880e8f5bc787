"""Calibrations that come with kvtool, so that its best recipe is ready at once where the model is one that people start with.

``bundled/index.json`` has an entry for each: the file, its recipe, and the model's fingerprints, which differ by dtype.
``python -m benchmarks bundle`` makes them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kvtool.codecs import Calibration

FOLDER = Path(__file__).parent / "bundled"
INDEX = FOLDER / "index.json"


class Bundled(NamedTuple):
    """A calibration in ``file``, of a model that has these ``fingerprints`` in one dtype or another."""

    file: str
    method: str
    fingerprints: list[str]


def bundled(method: str, fingerprint: str) -> Calibration | None:
    """The calibration of that method for the model of that fingerprint, which it names; None if none comes with kvtool."""
    for entry in entries():
        if entry.method == method and fingerprint in entry.fingerprints:
            read = _read(entry.file)
            return read.made(model=fingerprint, source=read.facts["source"])
    return None


def is_bundled(calibration: Calibration) -> bool:
    """Whether it comes with kvtool, whatever model it names."""
    sources = (_read(entry.file).facts["source"] for entry in entries() if entry.method == calibration.method)
    return calibration.facts.get("source") in sources


@cache
def entries() -> tuple[Bundled, ...]:
    """All that come with kvtool."""
    return tuple(Bundled(**entry) for entry in json.loads(INDEX.read_text()))


@cache
def _read(file: str) -> Calibration:
    return Calibration.from_bytes((FOLDER / file).read_bytes())
