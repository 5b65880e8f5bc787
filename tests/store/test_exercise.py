"""The backend of docs/exercises/store-backend.md: its suite, and the line that opens its addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kvtool
from kvtool.errors import StoreError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/exercises/store-backend.md").read_text()
FILES = dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
(DIFF,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
BACKEND, TEST = "kvtool/store/backends/zip.py", "tests/store/test_zip.py"
MODULE = "kvtool.store.backends.zip"

if (ROOT / BACKEND).exists():
    pytest.skip("the exercise is being done in this very tree", allow_module_level=True)


def module(name: str, source: str) -> Any:
    made = ModuleType(name)
    exec(compile(source, f"{PAGE.splitlines()[0]}: {name}", "exec"), vars(made))
    return made


zip_module = module(MODULE, FILES[BACKEND])
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, MODULE, zip_module)
    TestZip = module("tests.store.test_zip", FILES[TEST]).TestZip
    """The suite over the page's backend: pytest collects it here."""


@pytest.fixture(scope="module")
def local(tiny: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("guide.md").write_text("What is stored is found again.\n" * 4)
        assert not kvtool.prefill(["guide.md"], model=tiny, store=kvtool.Store(folder / "kv-store")).problems
    return kvtool.Store(folder / "kv-store")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's change of backends/open.py, made in a copy of it."""
    (name,) = re.findall(r"^\+\+\+ b/(\S+)$", DIFF, re.MULTILINE)
    assert name == "kvtool/store/backends/open.py"
    copy = tmp_path / name
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / name, copy)
    subprocess.run(["git", "apply", "-"], input=DIFF, cwd=tmp_path, text=True, check=True)
    monkeypatch.setitem(sys.modules, MODULE, zip_module)
    backends = module("kvtool.store.backends.open", copy.read_text()).BACKENDS
    monkeypatch.setattr("kvtool.store.backends.open.BACKENDS", backends)
    monkeypatch.setattr(Store, "_by_scheme", {"": LocalStore, **dict.fromkeys(backends, RemoteStore)})


@pytest.fixture
def address(local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    return "zip://" + shutil.make_archive(str(tmp_path / "kv-store"), "zip", local.root)


def test_the_page_changes_two_files() -> None:
    assert re.search(r"changes \*\*two\s+files\*\*", PAGE)
    assert list(FILES) == [BACKEND, TEST]


def test_an_address_opens_a_zip_file(opened: None, address: str, local: Store) -> None:
    for store in (kvtool.Store(address), kvtool.Store(Path(address))):
        assert str(store) == address
        assert list(store) == ["guide.md"]
        assert dict(store) == dict(local)


BROKEN: dict[str, tuple[Callable[[Path], Any], type[StoreError]]] = {
    "missing": (Path.unlink, Unreachable),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), StoreError),
    "no zip file": (lambda path: path.write_text("nothing"), StoreError),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_an_error_that_names_the_file(address: str, name: str) -> None:
    breaks, error = BROKEN[name]
    path = Path(address.removeprefix("zip://"))
    backend = zip_module.ZipBackend(address)
    breaks(path)
    with pytest.raises(error, match=re.escape(str(path))):
        backend.documents()
    if error is StoreError:
        with pytest.raises(error, match=re.escape(str(path))):
            zip_module.ZipBackend(address)


def test_another_zip_file_is_no_store(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(StoreError, match="is not a kvtool store"):
        zip_module.ZipBackend(f"zip://{tmp_path}/a.zip")


def test_an_encrypted_file_is_refused(address: str) -> None:
    path = Path(address.removeprefix("zip://"))
    data = bytearray(path.read_bytes())
    # The flag of encryption, in each entry of the list of files.
    for entry in re.finditer(rb"PK\x01\x02", bytes(data)):
        data[entry.start() + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="cannot be unpacked"):
        zip_module.ZipBackend(address)
