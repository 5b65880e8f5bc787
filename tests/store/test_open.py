"""An address opens the store of its kind, whoever wrote the class."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import StoreError, UsageError
from kvtool.store.backends.backend import NotThere, Unreachable
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.base import store_class
from kvtool.store.layout import address, scheme
from kvtool.store.local import LocalStore, writable
from kvtool.store.open import open_store
from kvtool.store.remote import RemoteStore

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("root", "opened_by"),
    [
        ("kv-store", LocalStore),
        (Path("a/b"), LocalStore),
        ("c:/store", LocalStore),
        ("http://h", RemoteStore),
        (Path("https://h"), RemoteStore),
        ("s3://b/p", RemoteStore),
        (Path("gs://b"), RemoteStore),
        ("file:///mnt/store", RemoteStore),
    ],
)
def test_the_scheme_names_the_class(root: str | Path, opened_by: type[Store]) -> None:
    assert store_class(root) is opened_by


@pytest.mark.parametrize("url", ["s3://bucket/a", "http://host:1/a", "file:///mnt/a"])
def test_an_address_survives_a_path(url: str) -> None:
    assert address(Path(url)) == address(url) == url
    assert scheme(Path(url)) == url.partition(":")[0]


def test_opening_gives_what_store_gives(store: Store) -> None:
    opened = open_store(store.root)
    assert type(opened) is type(Store(store.root)) is LocalStore
    assert isinstance(opened, Store)
    assert dict(opened) == dict(store)


def test_a_store_is_copied_and_pickled(store: Store) -> None:
    remote = Store(f"file://{store.root.resolve()}")
    for other in (
        copy.copy(store),
        copy.deepcopy(store),
        pickle.loads(pickle.dumps(store)),
        copy.copy(remote),
    ):
        assert dict(other) == dict(store)
        assert other.read("c.txt").n_tokens == 30


def test_the_contract_alone_reads_nothing() -> None:
    half = type("Half", (Store,), {})()
    with pytest.raises(NotImplementedError):
        list(half)


def test_a_class_of_somebody_elses_opens_its_scheme(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_by_scheme", dict(Store._by_scheme))
    files = {
        p.relative_to(store.root).as_posix(): p.read_bytes() for p in store.root.rglob("*") if p.is_file()
    }

    class MemoryStore(RemoteStore, schemes=["memory"]):
        def __init__(self, root: str | Path) -> None:
            super().__init__(root, MemoryBackend(address(root).removeprefix("memory://"), files))

    opened = kvtool.Store(Path("memory://mine"))
    assert isinstance(opened, MemoryStore)
    assert repr(opened) == "Store('memory://mine')"
    assert dict(opened) == dict(store)


def test_an_unknown_scheme_is_said_without_its_secrets() -> None:
    with pytest.raises(
        UsageError, match=r"^store ftp://…@host/x: expected http://HOST:PORT.*file.*or a directory"
    ):
        Store("ftp://user:word@host/x")


def test_only_a_local_store_is_written_to(store: Store) -> None:
    assert writable(store) is store
    url = f"file://{store.root.resolve()}"
    with pytest.raises(StoreError, match=f"{url}: is read only; kvtool pull copies"):
        writable(Store(url))


# Files on this machine


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "x" * 300])
def test_what_is_no_digest_of_the_stores_is_not_there(store: Store, digest: str) -> None:
    for each in (store, Store(f"file://{store.root.resolve()}")):
        for locate in (each.locate_artifact, each.locate_calibration):
            with pytest.raises(NotThere):
                locate(digest)


def test_a_remote_stores_files_are_fetched_when_they_are_located(store: Store) -> None:
    remote = Store(f"file://{store.root.resolve()}")
    variant = store["c.txt"].segments[0].variants["raw"]
    path = remote.locate_artifact(variant.artifact)
    assert path.is_relative_to(remote.cache.root)
    assert path.read_bytes() == store.locate_artifact(variant.artifact).read_bytes()


# Directories on a mount


@pytest.mark.parametrize("url", ["file://host/x", "file://", "file:///a\0b", "file://relative"])
def test_directories_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected file:///DIRECTORY"):
        Store(url)


def test_odd_directories_are_read(store: Store, tmp_path: Path) -> None:
    place = store.root.rename(tmp_path / "a b%20ü")
    assert list(Store(f"file://{tmp_path}/a%20b%2520ü")) == list(Store(place))


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(StoreError, match="is not a kvtool store"):
        Store(f"file://{tmp_path}")


@pytest.mark.parametrize("mount_point_stays", [True, False])
def test_a_mount_that_is_gone_removes_nothing(
    store: Store, tmp_path: Path, mount_point_stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtool.store.catalog.remote.FRESH", 0.0)
    url = f"file://{store.root.resolve()}"
    remote, read = Store(url), store.read("c.txt")
    remote.read("c.txt")
    root = store.root.resolve()
    root.rename(tmp_path / "unmounted")
    if mount_point_stays:
        root.mkdir()
    for again in (remote, Store(url)):
        assert again.read("c.txt").layers[0].keys.equal(read.layers[0].keys)
        with pytest.raises(Unreachable, match="is it mounted"):
            list(again)
        with pytest.raises(Unreachable):
            again["docs/a.md"]
