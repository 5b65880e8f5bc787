"""Wheels of this repository, and environments that have what a wheel needs and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("kvtool", "codecs", "kernels", "samples", "pyproject.toml", "README.md", "LICENSE")


def copied(folder: Path, *names: str) -> Path:
    """``folder`` with what git has, or would take, of these files and folders of the repository."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *names]
    done = subprocess.run(listed, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(folder: Path) -> Path:
    """The wheel, built in ``folder`` from a copy, so that nothing of an earlier build gets into it."""
    copied(folder, *BUILT_FROM)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation"],
        cwd=folder,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1767312000"},
        check=True,
        capture_output=True,
    )
    (path,) = (folder / "dist").glob("*.whl")
    return path


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
