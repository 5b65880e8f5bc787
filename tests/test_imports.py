"""The law of the house: which way imports point, and how large folders and files may be.

Imports point down, ``kvtool → codecs → kernels``; between packages as the table in the architecture page says; never in a
circle; never inside a function, but for commands and optional dependencies. What answers --help imports nothing heavy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from docsgen.imports import ROOT, Import, Tree, circle, module_name, package_arrows, read_imports, read_tree
from docsgen.picture import draw

PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PICTURE = ROOT / "docs" / "explanation" / "packages.svg"
FOLDERS = ("kvtool", "codecs", "kernels", "benchmarks", "docsgen", "tests")
FILES_AT_MOST, LINES_AT_MOST, PACKAGES_AT_MOST = 14, 400, 34
OPTIONAL = frozenset(
    {
        "cryptography",
        "httpx2",
        "lmcache",
        "mammoth",
        "matplotlib",
        "obstore",
        "openpyxl",
        "peft",
        "prometheus_client",
        "pypdf",
        "sglang",
        "starlette",
        "striprtf",
        "triton",
        "uvicorn",
        "vllm",
    }
)
"""Dependencies of pyproject's extras: what needs them imports them where it is used."""

LIGHT = ("typer", "kvtool.errors", "kvtool.counts", "kvtool.commands", *sys.stdlib_module_names)
"""What the command line may import before it knows which command is meant."""


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# The rules, each giving what breaks it


def pointing_up(tree: Tree) -> list[Import]:
    """Imports from ``codecs`` and ``kernels`` to what stands above them."""
    below = {"kvtool.codecs": ("kvtool.codecs", "kvtool.kernels"), "kvtool.kernels": ("kvtool.kernels",)}
    return [
        found
        for found in tree.imports()
        for package, allowed in below.items()
        if within(found.module, package)
        and (
            (within(found.target, "kvtool") and not within(found.target, *allowed))
            or within(found.target, "transformers", "safetensors", "codecs", "kernels")
        )
    ]


def module_circle(tree: Tree) -> list[str]:
    """A circle among modules, wherever the imports stand."""
    arrows: dict[str, set[str]] = {name: set() for name in tree.modules}
    for found in tree.own_imports():
        if found.target != found.module:
            arrows[found.module].add(found.target)
    return circle(arrows)


def inside_functions(tree: Tree) -> list[Import]:
    """Imports inside a function, but for those of commands and of what an extra brings."""
    found = tree.imports()
    optional = needing_extras(found)
    return [
        i
        for i in found
        if i.is_inside
        and not within(i.module, "kvtool.commands")
        and i.target.partition(".")[0] not in OPTIONAL
        and not any(module == i.target or module.startswith(f"{i.target}.") for module in optional)
    ]


def needing_extras(found: Sequence[Import]) -> set[str]:
    """Modules that cannot be imported without an extra, since they, or what they import, import it."""
    on_import = [i for i in found if not (i.is_inside or i.is_typing)]
    modules = {i.module for i in on_import if i.target.partition(".")[0] in OPTIONAL}
    while more := {i.module for i in on_import if i.target in modules} - modules:
        modules |= more
    return modules


def large_folders(root: Path) -> dict[str, int]:
    """Folders with too many source files, ``__init__.py`` and ``conftest.py`` not counted."""
    folders = [root / name for name in FOLDERS]
    every = [folder for top in folders for folder in (top, *top.rglob("*")) if folder.is_dir()]
    counts = {
        folder.relative_to(root).as_posix(): sum(
            1 for path in folder.glob("*.py") if path.name not in ("__init__.py", "conftest.py")
        )
        for folder in every
    }
    return {name: count for name, count in counts.items() if count > FILES_AT_MOST}


def long_files(root: Path) -> dict[str, int]:
    sources = [path for name in FOLDERS for path in (root / name).rglob("*") if path.suffix in (".py", ".js")]
    lengths = {
        path.relative_to(root).as_posix(): len(path.read_text().splitlines())
        for path in sources
        if path.is_file()
    }
    return {name: length for name, length in lengths.items() if length > LINES_AT_MOST}


def table() -> dict[str, set[str]]:
    """Package → packages that it may import, from the table of the architecture page."""
    rows = re.findall(r"^\| `([\w/]+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    return {package: set(re.findall(r"`([\w/]+)`", allowed)) for package, allowed in rows}


# The tree holds to them


@pytest.fixture(scope="module")
def tree() -> Tree:
    return read_tree()


@pytest.fixture(scope="module")
def arrows(tree: Tree) -> Mapping[str, set[str]]:
    return package_arrows(tree.own_imports())


def test_codecs_and_kernels_import_nothing_above_them(tree: Tree) -> None:
    assert not pointing_up(tree)


def test_no_modules_import_each_other_in_a_circle(tree: Tree) -> None:
    assert not module_circle(tree)


def test_no_import_hides_in_a_function(tree: Tree) -> None:
    assert not inside_functions(tree)


def test_folders_and_files_are_small() -> None:
    assert not large_folders(ROOT)
    assert not long_files(ROOT)


def test_packages_import_what_the_table_says_and_no_less(arrows: Mapping[str, set[str]]) -> None:
    assert dict(arrows) == table()


def test_the_picture_is_drawn_from_the_code(arrows: Mapping[str, set[str]]) -> None:
    assert len(arrows) <= PACKAGES_AT_MOST
    assert not circle(arrows)
    assert PICTURE.read_text() == draw(arrows), "run python -m docsgen"


def test_kernels_has_no_package_at_its_top() -> None:
    # A top-level package `kernels` would hide Hugging Face's, which transformers imports.
    assert not (ROOT / "kernels/__init__.py").exists()


def test_the_command_line_imports_nothing_heavy(tree: Tree) -> None:
    names = [name for name in tree.modules if within(name, "kvtool.cli", "kvtool.commands")]
    assert len(names) > 10
    heavy = [
        found
        for found in tree.imports()
        if found.module in names
        and not (found.is_inside or found.is_typing)
        and not within(found.target, *LIGHT)
    ]
    assert not heavy


# What breaks them is noticed

Writes = Callable[[str, str], None]


@pytest.fixture
def house(tmp_path: Path) -> Writes:
    """A small tree of its own, below ``tmp_path``; gives what writes a file into it."""

    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    write("kvtool/__init__.py", "")
    write("kvtool/store/__init__.py", "")
    write("kvtool/store/base.py", "import json\n")
    write("kvtool/store/local.py", "from kvtool.store.base import Store\n")
    return write


def test_a_sound_tree_breaks_no_rule(house: Writes, tmp_path: Path) -> None:
    tree = read_tree(tmp_path)
    assert len(tree.modules) == 4
    broken = [pointing_up(tree), module_circle(tree), inside_functions(tree)]
    assert broken == [[], [], []]
    assert not large_folders(tmp_path)
    assert not long_files(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "from kvtool.store import local\n",
        "def opened():\n    from kvtool.store.local import Local\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kvtool.store.local import Local\n",
        "import kvtool.store.local\n",
        "from . import local\n",
    ],
    ids=["plain", "in a function", "for types", "by its full name", "relative"],
)
def test_a_circle_is_noticed(house: Writes, tmp_path: Path, source: str) -> None:
    house("kvtool/store/base.py", source)
    found = module_circle(read_tree(tmp_path))
    assert {"kvtool.store.base", "kvtool.store.local"} == set(found)


def test_an_import_inside_a_function_is_noticed(house: Writes, tmp_path: Path) -> None:
    house("kvtool/store/open.py", "def opened():\n    from kvtool.store.local import Local\n")
    house("kvtool/commands/ls.py", "def run():\n    from kvtool.store.local import Local\n")
    house("kvtool/store/bucket.py", "def opened():\n    import obstore\n    import numpy\n")
    found = {(i.module, i.target) for i in inside_functions(read_tree(tmp_path))}
    assert found == {("kvtool.store.open", "kvtool.store.local"), ("kvtool.store.bucket", "numpy")}


def test_an_arrow_that_points_up_is_noticed(house: Writes, tmp_path: Path) -> None:
    house("codecs/blob.py", "from kvtool.store.base import Store\n")
    house("kernels/cpu.py", "from kvtool.codecs import blob\n")
    found = {(i.module, i.target) for i in pointing_up(read_tree(tmp_path))}
    assert found == {
        ("kvtool.codecs.blob", "kvtool.store.base"),
        ("kvtool.kernels.cpu", "kvtool.codecs.blob"),
    }


def test_a_long_file_and_a_full_folder_are_noticed(house: Writes, tmp_path: Path) -> None:
    house("kvtool/store/long.py", "x = 1\n" * (LINES_AT_MOST + 1))
    house("kvtool/store/just.py", "x = 1\n" * LINES_AT_MOST)
    assert long_files(tmp_path) == {"kvtool/store/long.py": LINES_AT_MOST + 1}
    for n in range(FILES_AT_MOST + 1):
        house(f"codecs/stage{n}.py", "")
    assert large_folders(tmp_path) == {"codecs": FILES_AT_MOST + 1}


def test_a_package_arrow_that_is_not_drawn_is_noticed(house: Writes, tmp_path: Path) -> None:
    house("kvtool/model/__init__.py", "")
    house("kvtool/model/model.py", "from kvtool.store.base import Store\n")
    found = package_arrows(read_tree(tmp_path).own_imports())
    assert found == {"model": {"store"}, "store": set()}


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    source = (
        "import torch\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n"
        "try:\n    from ..errors import X\nexcept ImportError:\n    pass\ndef f():\n    import zstandard\n"
    )
    path = tmp_path / "codecs" / "entropy" / "planes.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    name = module_name(path, tmp_path)
    assert name == "kvtool.codecs.entropy.planes"
    found = {(i.target, i.is_inside, i.is_typing) for i in read_imports(path, name, {})}
    assert found == {
        ("torch", False, False),
        ("typing", False, False),
        ("numpy", False, True),
        ("kvtool.codecs.errors", False, False),
        ("zstandard", True, False),
    }
