"""Prints the test files of what differs from the main branch, for ``make check``.

A source file has the tests in its folder's mirror below tests/, and every test file that imports it, itself or through a
helper or conftest beside it. Any other file has the test files that name it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
SOURCES = {"kvtool": "", "codecs": "codecs", "kernels": "kernels", "benchmarks": "benchmarks"}
"""Folder → its mirror below tests/."""


def main() -> None:
    files = changed()
    chosen = sorted({test for file in files for test in tests_of(file)})
    print(f"{len(files)} changed files have {len(chosen)} test files", file=sys.stderr)
    print(" ".join(map(str, chosen)))


def changed() -> list[Path]:
    """Files that differ from where the branch left the main branch, and new ones, relative to the repository."""
    base = _git("merge-base", "HEAD", next(filter(_exists, ("origin/main", "main")), "HEAD"))
    paths = _git("diff", "--name-only", *base) + _git("ls-files", "--others", "--exclude-standard")
    return sorted(map(Path, paths))


def tests_of(file: Path) -> set[Path]:
    """Test files to run when ``file`` has changed, relative to the repository."""
    if file.parts[0] == "tests" and file.suffix == ".py":
        if file.name.startswith("test_"):
            return {file} if (ROOT / file).exists() else set()
        # What all tests share has too many for a quick run: `make test` is for that.
        return _below(ROOT / file.parent) if len(file.parts) > 2 else set()
    if file.parts[0] not in SOURCES or file.suffix != ".py":
        named = file.suffix != ""
        return {test for test in _below(TESTS) if named and file.name in (ROOT / test).read_text()}
    return _mirrored(file) | _importing(_module(file))


def _mirrored(file: Path) -> set[Path]:
    """The tests below the mirror of a source file's folder, or of the nearest folder above it that has one."""
    top, *folders = file.parts[:-1]
    mirror = TESTS / SOURCES[top] / Path(*folders)
    while mirror != TESTS and not mirror.is_dir():
        mirror = mirror.parent
    return _below(mirror) if mirror != TESTS else set()


def _importing(module: str) -> set[Path]:
    chosen: set[Path] = set()
    for path in TESTS.rglob("*.py"):
        if module in _imports(path):
            chosen |= tests_of(path.relative_to(ROOT))
    return chosen


@cache
def _imports(path: Path) -> set[str]:
    """Modules that a file imports; of ``from a import b`` both a and a.b, since b may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _module(file: Path) -> str:
    parts = file.with_suffix("").parts
    if parts[0] in ("codecs", "kernels"):
        parts = ("kvtool", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _below(folder: Path) -> set[Path]:
    return {path.relative_to(ROOT) for path in folder.rglob("test_*.py")}


def _exists(name: str) -> bool:
    return bool(_git("rev-parse", "--verify", "--quiet", name, check=False))


def _git(*arguments: str, check: bool = True) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=check)
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
