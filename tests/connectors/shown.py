"""What tests of connectors have shown, noted for docs/results/engines.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "TESTS_SHOWN"
"""The environment variable that names the file for the notes; without it, none are made."""

ANSWERS, CLASSES = "answers", "values"


def shown(engine: str, family: str, variant: str, *, ranks: int = 1, by: str = CLASSES) -> None:
    """Notes that a variant of a family works in ``engine`` over so many ranks.

    ``by`` says how that was seen: ``ANSWERS`` of the running engine, or ``CLASSES`` of the engine that held the store's values.
    """
    if path := os.environ.get(FILE):
        note = {"engine": engine, "family": family, "variant": variant, "ranks": ranks, "by": by}
        with Path(path).open("a") as file:
            file.write(json.dumps(note) + "\n")
