"""Imports of the source tree, read from the code: between modules, and between packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SOURCES = ("kvtool", "codecs", "kernels")
"""Folders of the product. ``codecs`` and ``kernels`` are imported as ``kvtool.codecs`` and ``kvtool.kernels``."""

BASE = frozenset({"errors", "limits", "digest", "config", "counts", "formats", "units"})
"""Modules at the top of ``kvtool/`` that everything may build on. As a package they are called ``base``."""


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target`` in ``line``. ``is_inside`` is set in a function, ``is_typing`` under TYPE_CHECKING."""

    module: str
    target: str
    line: int
    is_inside: bool = False
    is_typing: bool = False


@dataclass(frozen=True)
class Tree:
    """The modules of the product below ``root``, by their full names."""

    root: Path
    modules: Mapping[str, Path]

    def imports(self) -> list[Import]:
        """Every import of every module, other people's included."""
        return [
            found for name, path in self.modules.items() for found in read_imports(path, name, self.modules)
        ]

    def own_imports(self) -> list[Import]:
        """Imports of one module of the product by another."""
        return [found for found in self.imports() if found.target in self.modules]


def read_tree(root: Path = ROOT) -> Tree:
    paths = (path for folder in SOURCES for path in sorted((root / folder).rglob("*.py")))
    # kvtool/codecs and kvtool/kernels are links to the folders at the top.
    own = [path for path in paths if path.relative_to(root).parts[:2] not in LINKS]
    return Tree(root, {module_name(path, root): path for path in own})


LINKS = (("kvtool", "codecs"), ("kvtool", "kernels"))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] in ("codecs", "kernels"):
        parts = ("kvtool", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    for node, is_inside, is_typing in _import_nodes(tree, False, False):
        for target in _targets(node, package, modules):
            yield Import(name, target, node.lineno, is_inside, is_typing)


def _import_nodes(
    node: ast.AST, is_inside: bool, is_typing: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, is_inside, is_typing
        else:
            inside = is_inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = is_typing or _is_type_checking(child)
            yield from _import_nodes(child, inside, typing)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Full names of what is imported: a module where the name is one, else the module that has the name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
    module = ".".join(filter(None, [base if node.level else "", node.module]))
    for alias in node.names:
        full = f"{module}.{alias.name}"
        yield full if full in modules else module


def package_of(module: str) -> str:
    """The package that a module belongs to, as the architecture page names it."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "__main__":
        return "kvtool"
    if parts[0] in BASE:
        return "base"
    if parts[0] == "cli":
        return "commands"
    return "/".join(parts[:2]) if parts[0] == "server" and len(parts) > 1 else parts[0]


def package_arrows(imports: list[Import]) -> dict[str, set[str]]:
    """Package → packages it imports. ``kvtool/__init__.py`` is left out: it names the public API lazily."""
    arrows: dict[str, set[str]] = {}
    for found in imports:
        source, target = package_of(found.module), package_of(found.target)
        if source != target and "kvtool" not in (source, target):
            arrows.setdefault(source, set()).add(target)
            arrows.setdefault(target, set())
    return arrows


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """A circle of names, the first of them again at its end; empty if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
