"""The table of formats, and the modules that write them."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from kvtool.errors import UsageError
from kvtool.formats import FORMATS
from kvtool.pipeline.lock import read_lock

ROOT = Path(__file__).resolve().parents[1]
OWNERS = {
    "artifact": "kvtool.artifact.read",
    "calibration": "kvtool.codecs.calibration",
    "manifest": "kvtool.store.manifest",
    "store": "kvtool.store.layout",
    "lock": "kvtool.pipeline.lock",
    "chunk": "kvtool.connectors.lmcache.chunk",
    "evaluation": "kvtool.evaluation.result",
    "break-even": "kvtool.breakeven.result",
    "recommendation": "kvtool.recommendation.choose",
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_says_what_is_written(name: str) -> None:
    written = import_module(OWNERS[name]).FORMAT
    assert written == FORMATS[name].number


def test_every_format_is_in_the_table() -> None:
    """Whatever module has a constant of that name."""
    folders = {"kvtool": "kvtool", "codecs": "kvtool.codecs", "kernels": "kvtool.kernels"}
    found = {
        ".".join((module, *path.relative_to(ROOT / folder).with_suffix("").parts))
        for folder, module in folders.items()
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^FORMAT\b", path.read_text(), re.MULTILINE)
    }
    assert found == set(OWNERS.values())
    assert FORMATS.keys() == OWNERS.keys()


def test_a_newer_lock_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "kvtool.lock"
    path.write_text(json.dumps({"format": FORMATS["lock"].number + 1, "documents": {}}))
    with pytest.raises(UsageError, match=r"kvtool\.lock: is of a newer kvtool; upgrade kvtool"):
        read_lock(path)
