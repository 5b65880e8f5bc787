"""Imports point down, kvtool → codecs → kernels, and what answers --help imports nothing heavy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODECS = sorted((ROOT / "codecs").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
LIGHT = [p for p in [ROOT / "kvtool/cli.py", *sorted((ROOT / "kvtool/commands").glob("*.py"))] if p.exists()]


def imported(tree: ast.AST, package: str, *, everywhere: bool = True) -> Iterator[str]:
    """Full names that a module imports: anywhere, or only by being imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, [base if node.level else "", node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or for_types_only(node)
        ):
            yield from imported(node, package, everywhere=everywhere)


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def of(path: Path, *, everywhere: bool = True) -> list[str]:
    folder = path.relative_to(ROOT).parent.as_posix().replace("/", ".")
    package = folder if folder.startswith("kvtool") else f"kvtool.{folder}"
    return list(imported(ast.parse(path.read_text()), package, everywhere=everywhere))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", CODECS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_codecs_import_codecs_and_kernels_only(path: Path) -> None:
    up = [n for n in of(path) if within(n, "kvtool") and not within(n, "kvtool.codecs", "kvtool.kernels")]
    assert not up
    assert not [n for n in of(path) if within(n, "transformers", "safetensors", "codecs", "kernels")]


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_kernels_import_kernels_only(path: Path) -> None:
    up = [n for n in of(path) if within(n, "kvtool") and not within(n, "kvtool.kernels")]
    assert not up
    assert not [n for n in of(path) if within(n, "transformers", "safetensors", "codecs", "kernels")]


def test_kernels_has_no_package_at_its_top() -> None:
    # A top-level package `kernels` would hide Hugging Face's, which transformers imports.
    assert not (ROOT / "kernels/__init__.py").exists()


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_command_line_imports_nothing_heavy(path: Path) -> None:
    light = ("typer", "kvtool.errors", "kvtool.commands", *sys.stdlib_module_names)
    assert not [name for name in of(path, everywhere=False) if not within(name, *light)]


def test_the_reader_of_imports_sees_them() -> None:
    source = (
        "import torch\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n"
        "try:\n    from ..errors import X\nexcept ImportError:\n    pass\ndef f():\n    import zstandard\n"
    )
    tree = ast.parse(source)
    top = set(imported(tree, "kvtool.codecs.entropy", everywhere=False))
    assert top == {"torch", "typing.TYPE_CHECKING", "kvtool.codecs.errors.X"}
    assert set(imported(tree, "kvtool.codecs.entropy")) == top | {"numpy", "zstandard"}
