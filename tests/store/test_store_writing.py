"""Writing to a store: nothing is lost, whoever else writes and whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import StoreError
from kvtool.store.layout import MARKER
from kvtool.store.local import LocalStore
from kvtool.system import files
from tests.store.conftest import bytes_of

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


def test_the_same_content_is_stored_once(store: LocalStore, tiny: kvtool.Model) -> None:
    before = bytes_of(store.root)
    stat = {p: p.stat().st_mtime_ns for p in store.root.rglob("*.safetensors")}
    report = kvtool.prefill(["docs", "c.txt"], model=tiny, store=store)
    assert sorted(report.unchanged) == THREE
    assert report.tokens == 0
    after = bytes_of(store.root)
    assert after == before
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*.safetensors")} == stat


def test_an_artifact_left_without_a_manifest_is_used_again(store: LocalStore, tiny: kvtool.Model) -> None:
    before = bytes_of(store.root)
    for name in THREE:
        store.remove(name)
    report = kvtool.prefill(["docs", "c.txt"], model=tiny, store=store)
    assert report.tokens == 0
    assert sorted(report.prefilled) == THREE
    assert bytes_of(store.root) == before


def test_a_broken_artifact_left_behind_is_not_used_again(store: LocalStore, tiny: kvtool.Model) -> None:
    before = bytes_of(store.root)
    path = store.path_of(store["c.txt"].segments[0].variants["raw"])
    store.remove("c.txt")
    path.write_bytes(path.read_bytes()[:-1])
    path.replace(path.with_name("ab" * 32 + ".safetensors"))
    # The same arguments: low bits depend on the pass that documents share.
    report = kvtool.prefill(["docs", "c.txt"], model=tiny, store=store)
    assert report.tokens == sum(document.n_tokens for document in store.values())
    assert bytes_of(store.root).items() >= before.items()


def test_the_next_writer_removes_what_a_killed_one_left(store: LocalStore) -> None:
    places = [store.root, store.root / "artifacts" / "00", store.root / "manifests" / "docs"]
    leftovers = [place / f"{files.TEMPORARY}{'0' * 32}" for place in places]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert list(store) == THREE
    with store.writing():
        assert not any(path.exists() for path in leftovers)


def test_a_writer_leaves_alone_what_another_is_writing(store: LocalStore) -> None:
    with store.writing():
        living = store.root / f"{files.TEMPORARY}{'0' * 32}"
        living.write_bytes(b"half")
        with LocalStore(store.root).writing():
            assert living.exists()


@pytest.mark.parametrize("leftover", [".tmp-0123", "lock"])
def test_a_writer_killed_before_the_marker_leaves_a_store_that_opens(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_bytes(b"")
    store = LocalStore(tmp_path)
    with store.writing():
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER, "lock"]


def test_two_variants_made_at_the_same_time_both_stay(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other run commits between this one's reading of the manifest and its commit.
    put = LocalStore.put

    def meanwhile(self: LocalStore, content: object) -> object:
        monkeypatch.setattr(LocalStore, "put", put)
        kvtool.compress(LocalStore(store.root), ["c.txt"], recipe="kivi")
        return put(self, content)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "put", meanwhile)
    kvtool.compress(store, ["c.txt"], recipe="lossless")
    assert store["c.txt"].variants == ["raw", "kivi", "lossless"]


PREFILL = """
import sys, torch, kvtool
torch.set_num_threads(1)
model, store, *paths = sys.argv[1:]
report = kvtool.prefill(paths, model=kvtool.load_model(model), store=kvtool.Store(store))
assert not report.problems, report.problems
"""


@pytest.mark.slow
def test_two_processes_fill_one_new_store_while_a_reader_looks_on(corpus: Path, tiny_dir: Path) -> None:
    for n in range(40):
        (corpus / f"{n % 2}").mkdir(exist_ok=True)
        (corpus / f"{n % 2}" / f"{n}.md").write_text(f"Document {n}. " * 8)
    (corpus / "both.md").write_text("Both have this one.")
    runs = [
        subprocess.Popen([sys.executable, "-c", PREFILL, str(tiny_dir), "kv-store", str(n), "both.md"])
        for n in range(2)
    ]
    seen = 0
    while any(run.poll() is None for run in runs):
        for name in (reader := LocalStore("kv-store")):
            assert reader.read(name).n_tokens
            seen += 1
    assert [run.wait() for run in runs] == [0, 0]
    assert seen
    store = LocalStore("kv-store")
    assert len(store) == 41
    # Each run may have computed the document that both have; one of the two artifacts is then in no use.
    assert len(store.collect()) <= 1
    for document in store.values():
        for variant in document.artifacts:
            store.open_artifact(variant).verify()
    assert not list(store.root.rglob(files.TEMPORARY + "*"))


# A full disk, a disk that cannot be written, a crash


@pytest.mark.parametrize("call", ["open", "fsync"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_full_disk_loses_nothing(
    store: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    before = bytes_of(store.root)
    Path("docs/a.md").write_text("Changed.")
    Path("docs/new.md").write_text("New.")
    real, calls = getattr(os, call), iter(range(1, 1000))

    def full(*args: object, **kwargs: object) -> object:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    _ = tiny.model, tiny.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, full)
        with pytest.raises(
            StoreError, match=r"the disk is full\. What was stored before is safe.*run the same"
        ):
            kvtool.prefill(["docs"], model=tiny, store=store)
    after = bytes_of(store.root)
    assert not [name for name in after if files.TEMPORARY in name]
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"manifests/docs/a.md.json"}
    assert all(document.n_tokens for document in store.values())
    assert not kvtool.prefill(["docs"], model=tiny, store=store).problems


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the given options."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounts = 0

    def mount(options: str) -> Path:
        nonlocal mounts
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs is not allowed here")
        mounts += 1
        return place

    yield mount
    if mounts:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(
    store: LocalStore, tiny: kvtool.Model, mounted: Callable[[str], Path]
) -> None:
    disk = Path(shutil.copytree(store.root, mounted("size=256k") / "kv-store"))
    before = bytes_of(disk)
    filler = disk.parent / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free))
    Path("docs/new.md").write_text("A longer document. " * 20)
    with pytest.raises(StoreError, match="the disk is full"):
        kvtool.prefill(["docs"], model=tiny, store=LocalStore(disk))
    assert bytes_of(disk) == before
    filler.unlink()
    assert kvtool.prefill(["docs"], model=tiny, store=LocalStore(disk)).prefilled == ["docs/new.md"]


def test_a_disk_that_cannot_be_written(
    store: LocalStore, tiny: kvtool.Model, mounted: Callable[[str], Path]
) -> None:
    place = mounted("size=1m")
    disk = Store(shutil.copytree(store.root, place / "kv-store"))
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    Path("docs/new.md").write_text("New.")
    assert disk.read("c.txt").n_tokens == 30
    assert disk.load("c.txt", tiny).get_seq_length() == 31
    for attempt in (
        lambda: kvtool.prefill(["docs"], model=tiny, store=disk),
        lambda: kvtool.compress(disk, recipe="kivi"),
        lambda: disk.remove("c.txt"),
        lambda: disk.discard(disk["c.txt"].artifacts[0]),
        disk.collect,
    ):
        with pytest.raises(StoreError, match=r"cannot be written .*check that the directory is writable"):
            attempt()


def crash_at(line: int, path: Path, content: bytes) -> bool:
    """Writes ``path`` in a process that dies without a word before the ``line``-th line; whether it died."""

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal line
        if frame.f_code.co_filename != files.__file__:  # type: ignore[attr-defined]
            return None
        if event == "line":
            line -= 1
            if line < 0:
                os._exit(9)
        return trace

    if (child := os.fork()) == 0:
        sys.settrace(trace)  # type: ignore[arg-type]
        files.write_atomic(path, [content[:3], content[3:]])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("old", [None, b"the old one"])
def test_a_crash_between_any_two_steps_leaves_old_or_new(tmp_path: Path, old: bytes | None) -> None:
    outcomes = set()
    for line in range(1000):
        path = tmp_path / str(line) / "folder" / "file"
        if old is not None:
            files.write_atomic(path, [old])
        died = crash_at(line, path, b"the new one")
        content = path.read_bytes() if path.exists() else None
        assert content in (old, b"the new one")
        outcomes.add(content)
        files.remove_temporaries(tmp_path)
        assert list(path.parent.iterdir() if path.parent.exists() else []) == ([path] if content else [])
        if not died:
            break
    assert outcomes == {old, b"the new one"}
    assert line > 10


def test_json_of_the_marker_is_what_the_message_says(store: LocalStore) -> None:
    assert json.loads((store.root / MARKER).read_bytes()) == {"format": 1}
