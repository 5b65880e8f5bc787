"""Making room in a store: what goes, what stays, and what is in use meanwhile."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import StoreError
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.catalog.uses import Uses
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from kvtool.store.room import quota as quota_module
from kvtool.store.room.make_room import make_room, stored_bytes
from kvtool.store.room.quota import COUNT_SECONDS, Quota, QuotaReached
from kvtool.store.room.rules import Reason, Rules
from tests.store.conftest import bytes_of

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


def used(store: LocalStore, *names: str) -> None:
    """The documents were used one after the other, long after they were committed."""
    for second, name in enumerate(names):
        with store.using(name):
            pass
        path = store.root / "uses" / f"{name}.json"
        os.utime(path, (time.time() + 1000 + second,) * 2)


def test_the_least_recently_used_goes_and_the_store_is_whole(store: LocalStore) -> None:
    used(store, "docs/b.md", "c.txt", "docs/a.md")
    total = stored_bytes(store)
    assert total == sum(path.stat().st_size for path in store.artifact_files())
    room = make_room(store, Rules(max_bytes=total - 1))
    assert room is not None
    assert room.documents == {"docs/b.md": Reason.SIZE}
    assert list(store) == ["c.txt", "docs/a.md"]
    assert stored_bytes(store) == room.nbytes < total
    for name in store:
        store.open(name).verify()
    assert store.collect() == []


def test_a_dry_run_says_the_same_and_changes_nothing(store: LocalStore) -> None:
    used(store, *THREE)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    rules = Rules(max_bytes=stored_bytes(store) // 2)
    planned = make_room(store, rules, dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    done = make_room(store, rules)
    assert planned == done
    assert done is not None
    assert not any(path.exists() for path in done.artifacts)


def test_what_is_pinned_or_in_use_stays(store: LocalStore) -> None:
    store.pins.add("c.txt")
    with store.using("docs/a.md"):
        room = make_room(store, Rules(max_bytes=0))
        assert room is not None
        assert list(room.documents) == ["docs/b.md"]
        assert room.nbytes > 0
    assert list(store) == ["c.txt", "docs/a.md"]
    assert make_room(store, Rules(max_bytes=0, max_age=0, max_idle=0))
    assert list(store) == ["c.txt"]
    store.remove("c.txt")
    assert list(store.pins) == []


def test_loading_a_document_is_a_use_of_it(store: LocalStore, tiny: kvtool.Model) -> None:
    assert store.uses.last("c.txt") is None
    before = time.time()
    store.load("c.txt", tiny)
    last = store.uses.last("c.txt")
    assert last is not None
    assert last >= before - 1
    kvtool.blend(store, ["docs/a.md", "docs/b.md"], tiny)
    assert store.uses.last("docs/b.md") is not None


def test_a_use_ends_with_its_process(store: LocalStore) -> None:
    child = os.fork()
    if not child:
        with store.using("c.txt"):
            os._exit(0)
    os.waitpid(child, 0)
    assert not store.uses.is_used("c.txt")


def test_variants_go_and_the_rest_of_the_document_stays(store: LocalStore) -> None:
    kvtool.compress(store, recipe="nf4")
    room = make_room(store, Rules(variants=frozenset({"nf4"})))
    assert room is not None
    assert list(room.trimmed) == THREE
    for name in THREE:
        assert store[name].variants == ["nf4"]
        store.open(name, "nf4").verify()
    assert len(room.artifacts) == 3
    assert store.collect() == []


def test_an_artifact_that_is_being_sent_stays_for_a_while(store: LocalStore) -> None:
    stray = store.path_of(store["c.txt"].segments[0].variants["raw"])
    store.remove("c.txt")
    stray.touch()
    make_room(store, Rules(), stray_seconds=60)
    assert stray.exists()
    os.utime(stray, (time.time() - 61,) * 2)
    make_room(store, Rules(), stray_seconds=60)
    assert not stray.exists()


def test_nothing_goes_while_a_manifest_cannot_be_read(store: LocalStore) -> None:
    (store.root / "manifests" / "c.txt.json").write_text("{}")
    before = store.artifact_files()
    with pytest.raises(StoreError, match=r"c\.txt"):
        make_room(store, Rules(max_bytes=0))
    assert store.artifact_files() == before


def test_a_store_that_cannot_be_written_to_is_read(store: LocalStore) -> None:
    store.root.chmod(0o500)
    try:
        with store.using("c.txt"):
            store.read("c.txt")
    finally:
        store.root.chmod(0o700)


def test_what_begins_to_be_used_meanwhile_keeps_its_variants(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, recipe="nf4")
    # It is looked at before somebody begins to use it.
    monkeypatch.setattr(Uses, "is_used", lambda self, name: False)
    with store.using("c.txt"):
        room = make_room(store, Rules(variants=frozenset({"nf4"})))
    assert room is not None
    assert list(room.trimmed) == THREE[1:]
    assert store["c.txt"].variants == ["raw", "nf4"]
    store.open("c.txt").verify()


def test_to_lose_a_variant_is_no_use(store: LocalStore) -> None:
    kvtool.compress(store, recipe="nf4")
    make_room(store, Rules(variants=frozenset({"nf4"})))
    assert [store.uses.last(name) for name in THREE] == [None] * 3


def test_a_use_of_what_is_not_there_leaves_no_note(store: LocalStore) -> None:
    with store.using("no such document"):
        pass
    assert not (store.root / "uses").exists()


class TestQuota:
    def test_room_is_made_for_what_comes(self, store: LocalStore) -> None:
        used(store, *THREE)
        quota = Quota(store, stored_bytes(store))
        with quota.admitted(1):
            pass
        assert list(store) == ["docs/a.md", "docs/b.md"]

    def test_what_cannot_be_removed_leaves_no_room(self, store: LocalStore) -> None:
        for name in THREE:
            store.pins.add(name)
        quota = Quota(store, stored_bytes(store))
        with pytest.raises(QuotaReached, match="1 bytes more do not fit"), quota.admitted(1):
            pass
        assert list(store) == THREE

    def test_others_who_write_are_waited_for(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quota_module, "WAIT_SECONDS", 0.2)
        quota = Quota(store, stored_bytes(store))
        with store.writing():
            with pytest.raises(QuotaReached), quota.admitted(10):
                pass
            quota.keep()
            assert list(store) == THREE
        monkeypatch.setattr(quota_module, "WAIT_SECONDS", 20.0)
        writing = threading.Event()

        def write() -> None:
            with store.writing():
                writing.set()
                time.sleep(0.3)

        writer = threading.Thread(target=write)
        writer.start()
        writing.wait()
        with quota.admitted(10):
            assert len(store) < 3
        writer.join()

    def test_what_is_coming_counts(self, store: LocalStore) -> None:
        total = stored_bytes(store)
        quota = Quota(store, total + 100)
        for name in THREE:
            store.pins.add(name)
        with quota.admitted(60):
            with pytest.raises(QuotaReached), quota.admitted(60):
                pass
            with quota.admitted(40):
                pass
        with pytest.raises(QuotaReached), quota.admitted(total + 101):
            pass

    def test_a_store_that_has_grown_is_kept_within_it(self, store: LocalStore, tmp_path: Path) -> None:
        quota = Quota(store, 1)
        quota.keep()
        assert list(store) == []
        Quota(LocalStore(tmp_path / "none"), 1).keep()

    def test_a_file_that_goes_meanwhile_and_a_broken_manifest_stop_nobody(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [*store.artifact_files(), store.root / "artifacts/00/gone.safetensors"]
        monkeypatch.setattr(LocalStore, "artifact_files", lambda self: paths)
        quota = Quota(store, 1)
        (store.root / "manifests" / "c.txt.json").write_text("{}")
        quota.keep()
        with pytest.raises(QuotaReached), quota.admitted(1):
            pass
        assert all(path.exists() for path in paths[:-1])

    def test_a_remote_store_s_cache_is_kept_within_it(self, store: LocalStore, cache: Path) -> None:
        remote = RemoteStore("", MemoryBackend("quota", bytes_of(store.root)))
        largest = max(path.stat().st_size for path in store.artifact_files())
        quota = Quota(remote.cache, 2 * largest)
        for _ in range(2):
            for name in THREE:
                remote.read(name)
                quota._counted = -COUNT_SECONDS
                quota.keep()
                assert stored_bytes(remote.cache) <= 2 * largest
        assert list(remote) == THREE
