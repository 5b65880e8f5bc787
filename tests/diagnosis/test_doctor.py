"""What kvtool doctor finds, and that it names a command for what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvtool.cli import app
from kvtool.diagnosis import machine, packages
from kvtool.errors import GATE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    """In a folder without a store, and without measuring for long."""
    monkeypatch.setattr(machine, "SECONDS", 0.001)


def doctor(*arguments: str, code: int = 0) -> Mapping[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    assert result.exit_code == code, (result.stdout, result.stderr)
    return {one["subject"]: one for one in json.loads(result.stdout)["findings"]}


def test_everything_is_looked_at(tiny_dir: Path) -> None:
    found = doctor()
    assert {
        "packages",
        "extra bucket",
        "extra serve",
        "processor",
        "memory",
        "GPU",
        "kernels",
        "model",
    } <= found.keys()
    assert {"extra dev", "extra docs"}.isdisjoint(found)
    assert found["packages"]["state"] == "ok"
    assert "obstore" in found["extra bucket"]["detail"]
    assert "reference, cpu" in found["kernels"]["detail"]
    assert found["decoding kivi"]["detail"].endswith(" GB a second on cpu")
    assert (found["store"]["state"], found["store"]["remedy"][:14]) == ("missing", "kvtool prefill")


@pytest.mark.usefixtures("store")
def test_a_store_is_counted() -> None:
    assert doctor()["store"]["detail"] == "kv-store, 3 documents"


def test_what_is_missing_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    version = packages._version
    monkeypatch.setattr(packages, "_version", lambda name: None if name == "obstore" else version(name))
    found = doctor()["extra bucket"]
    assert (found["state"], found["detail"]) == ("missing", "no obstore")
    assert found["remedy"] == "pip install 'kvtool[bucket]'"


def test_a_package_that_is_too_old_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    version = packages._version
    monkeypatch.setattr(packages, "_version", lambda name: "4.0" if name == "transformers" else version(name))
    found = doctor(code=GATE)["packages"]
    assert found["state"] == "broken"
    assert found["detail"].startswith("transformers 4.0, expected ")


def test_an_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = packages._version
    monkeypatch.setattr(packages, "_version", lambda name: "0.32.0" if name == "vllm" else version(name))
    assert doctor()["engine vllm"]["detail"] == "0.32.0"


def test_a_model_that_is_not_there_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTOOL_MODEL", "nowhere.gguf")
    found = doctor(code=GATE)["model"]
    assert (found["state"], found["detail"]) == ("broken", "nowhere.gguf: no such GGUF file")


def test_a_folder_that_is_no_store_is_broken() -> None:
    found = doctor("--store", "docs", code=GATE)["store"]
    assert found["state"] == "broken"
    assert "is not a kvtool store" in found["detail"]


def test_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    found = doctor()["memory"]
    assert (found["state"], found["detail"]) == ("missing", "1.0 GB free")


def test_a_kernel_that_fails_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(machine, "decode", fail)
    assert doctor(code=GATE)["decoding kivi"]["detail"] == "fails on cpu (no compiler here)"


def test_without_torch_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvtool.diagnosis.machine", None)
    found = doctor(code=GATE)
    assert found["packages"]["state"] == "ok"
    assert found["machine"]["state"] == "broken"
