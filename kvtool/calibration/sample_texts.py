"""Texts of many kinds that come with kvtool, for calibrating models whose store has too few documents.

Each is of about 1,024 tokens, and of a licence that allows to pass it on; ``python -m benchmarks sample_texts`` makes the file.
"""

from __future__ import annotations

import json
from functools import cache

import zstandard

from kvtool.calibration.bundled_calibrations import FOLDER

FILE = FOLDER / "texts.json.zst"


@cache
def sample_texts() -> tuple[str, ...]:
    """The texts, of all kinds in turn."""
    content = zstandard.ZstdDecompressor().decompress(FILE.read_bytes())
    return tuple(one["text"] for one in json.loads(content))
