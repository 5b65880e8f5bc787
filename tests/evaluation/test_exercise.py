"""The metric of docs/exercises/metric.md, applied to a copy of kvtool and measured there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.measurement.distortion import TOKEN_METRICS
from kvtool.store.local import LocalStore

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/exercises/metric.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
CHANGED = re.findall(r"^\+\+\+ b/(\S+)$", "\n".join(DIFFS), re.MULTILINE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("tv" in TOKEN_METRICS, reason="the exercise is being done in this very tree"),
]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the page's changes."""
    folder = tmp_path_factory.mktemp("exercise")
    for package in ("kvtool", "codecs", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=ignored)
    for diff in DIFFS:
        # The lines around a change must be as the page says; where in the file they are may differ.
        subprocess.run(["git", "apply", "-"], input=diff, cwd=folder, text=True, check=True)
    return folder


def run(changed: Path, arguments: Sequence[str], cache: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(changed), "KVTOOL_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "kvtool", *arguments],
        env=environment,
        cwd=cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def arguments(documents: LocalStore, lively: kvtool.Model) -> list[str]:
    options = {
        "--store": documents.root,
        "--model": lively.directory,
        "--device": "cpu",
        "--recipes": "kivi:bits=8,kivi:bits=2",
        "--metrics": "kl",
        "--context": 300,
        "--tokens": 32,
    }
    return ["eval", *(str(word) for option in options.items() for word in option)]


@pytest.fixture(scope="module")
def candidates(
    changed: Path, arguments: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    return json.loads(run(changed, [*arguments, "--json"], tmp_path_factory.mktemp("cache")))["candidates"]


def test_the_page_changes_two_files(changed: Path) -> None:
    assert CHANGED == ["kvtool/measurement/distortion.py", "kvtool/report/columns.py"]
    assert re.search(r"changes \*\*two\s+files\*\*", PAGE)
    differ = [
        path.relative_to(changed).as_posix()
        for path in (changed / "kvtool").rglob("*.py")
        if path.read_bytes() != (ROOT / path.relative_to(changed)).read_bytes()
    ]
    assert sorted(differ) == sorted(CHANGED)


def test_the_raw_cache_loses_nothing(candidates: list[dict[str, Any]]) -> None:
    raw = candidates[0]
    assert (raw["tv"]["low"], raw["tv"]["value"], raw["tv"]["high"]) == (0.0, 0.0, 0.0)


def test_fewer_bits_cost_more(candidates: list[dict[str, Any]]) -> None:
    _, eight, two = candidates
    assert 0 < eight["tv"]["high"] < two["tv"]["low"] < 1


def test_pinskers_inequality_holds(candidates: list[dict[str, Any]]) -> None:
    for candidate in candidates:
        for one in [candidate, *candidate["by_document"]]:
            tv, kl = (one[name]["value"] if one is candidate else one[name] for name in ("tv", "kl"))
            assert tv <= (kl / 2) ** 0.5 + 1e-12


def test_the_table_has_a_column(changed: Path, arguments: Sequence[str], tmp_path: Path) -> None:
    heading, *lines = run(changed, arguments, tmp_path).splitlines()
    assert "TV %" in heading
    assert [line.split()[0] for line in lines[:3]] == ["raw", "kivi:bits=2", "kivi:bits=8"]
