"""Memory that this process can still take, under a container's limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvtool.system import available_memory as module
from kvtool.system.available_memory import available_memory


def _group(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700000\n")
    (folder / "memory.stat").write_text("anon 400000\ninactive_file 200000\nactive_file 100000\n")


@pytest.mark.parametrize(("limit", "expected"), [("1000000", 500_000), ("600000", 100_000), ("400000", 0)])
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    monkeypatch.setattr(module, "GROUP", tmp_path)
    _group(tmp_path, limit)
    assert available_memory() == expected


def test_without_a_limit_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", tmp_path)
    nearly = pytest.approx(psutil.virtual_memory().available, rel=0.5)
    assert available_memory() == nearly
    _group(tmp_path, "max")
    assert available_memory() == nearly
