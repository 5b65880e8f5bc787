"""A store is a mapping of documents that no reader, writer or crash damages."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kvtool
from kvtool import Store, limits
from kvtool.errors import ArtifactError, StoreError, UsageError
from kvtool.store.layout import MARKER
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document
from kvtool.system import files

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def named(store: LocalStore, name: str) -> Document:
    """A document of the store, under another name."""
    return replace(store["c.txt"], name=name)


# A mapping


def test_it_is_a_mapping_sorted_by_name(store: LocalStore) -> None:
    assert list(store) == THREE == sorted(store.keys())
    assert len(store) == 3
    assert "docs/a.md" in store
    assert "docs" not in store
    assert store["docs/a.md"].name == "docs/a.md"
    assert dict(store.items())["c.txt"] == store["c.txt"]
    assert store.get("docs/z.md") is None


def test_names_sort_as_names_not_as_paths(store: LocalStore) -> None:
    for name in ("d/x.md", "d-e/x.md", "d.md", "d"):
        store.commit(named(store, name))
    assert list(store) == sorted(store)


def test_an_absent_directory_is_an_empty_store_and_stays_absent(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "none")
    assert list(store) == []
    assert store.collect() == []
    with pytest.raises(StoreError, match="the store is empty: run kvtool prefill first"):
        store["x"]
    assert not store.root.exists()


@pytest.mark.parametrize(("name", "near"), [("docs/a.mb", "docs/a.md"), ("c.text", "c.txt")])
def test_a_missing_document_suggests_near_names(store: LocalStore, name: str, near: str) -> None:
    with pytest.raises(StoreError, match=rf"is not in the store .*did you mean.*{near}") as caught:
        store[name]
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith(("'", '"'))


def test_a_far_name_says_where_to_look(store: LocalStore) -> None:
    with pytest.raises(KeyError, match="kvtool ls shows what is there"):
        store["zzzzzzzzzz"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\0b", "a/..", "\ud800"]
)
def test_names_that_would_leave_the_store_are_refused(store: LocalStore, name: str) -> None:
    assert name not in store
    with pytest.raises(StoreError, match="is not a document name"):
        store[name]
    with pytest.raises(StoreError, match="is not a document name"):
        store.commit(named(store, name))


@pytest.mark.parametrize(
    "name",
    [
        "with space.md", "ünï/çødé 文.md", "100%.md", "%2e%2e/x", "%", "a%2Fb", "x.json", "x.json/y", "x", "x/y.json",
        "X.JSON/y", "a\\b", "a\nb", "trailing. ", "a.", ".hidden", ".tmp-x", ".tmp-x/y.md", "-x", "*", "~", "con:1",
        "\x7f\x1b[31m", "é", "e\u0301", "🗎.md", "lock", MARKER,
    ],
)  # fmt: skip
def test_odd_names_are_kept_as_they_are(store: LocalStore, name: str) -> None:
    document = named(store, name)
    with store.writing():
        store.commit(document)
    with store.writing():  # the next writer removes temporary files, and nothing else
        pass
    assert store[name] == document
    assert sorted([*THREE, name]) == list(store)
    assert all(p.is_relative_to(store.root.resolve()) for p in (q.resolve() for q in store.root.rglob("*")))
    store.remove(name)
    assert list(store) == THREE


def test_names_that_look_like_each_others_files_live_side_by_side(store: LocalStore) -> None:
    names = ["x", "x.json", "x.json/y", "x/y", "x.json.json", "x%2Ejson/y", "X", ".tmp-", "%2Etmp-"]
    for name in names:
        store.commit(named(store, name))
    assert set(store) == {*names, *THREE}
    for name in names:
        assert store[name].name == name


@pytest.mark.parametrize("name", ["x" * 251, "ä" * 126, "a/" + "x" * 300 + "/b", "%" * 84, "x" * 5000])
def test_a_name_too_long_for_a_file_is_refused(store: LocalStore, name: str) -> None:
    assert name not in store
    with pytest.raises(StoreError, match=r"cannot be stored.*rename"):
        store.commit(named(store, name))
    assert list(store) == THREE


def test_the_longest_name_fits(store: LocalStore) -> None:
    store.commit(named(store, "x" * 250))
    assert store["x" * 250].n_tokens


def test_a_document_with_too_long_a_name_does_not_stop_the_others(corpus: Path, tiny: kvtool.Model) -> None:
    (corpus / ("x" * 253)).write_text("Too long a name.")
    (corpus / "ok.md").write_text("Fine.")
    for options in ({}, {"replace": True}):
        report = kvtool.prefill(["x" * 253, "ok.md"], model=tiny, store=LocalStore("new"), **options)  # type: ignore[arg-type]
        assert [str(problem)[:20] for problem in report.problems] == ["x" * 20]
        assert list(LocalStore("new")) == ["ok.md"]


# What is not a store


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"is not a kvtool store .*name another with --store"):
        LocalStore(tmp_path)
    with pytest.raises(StoreError, match="is not a kvtool store"):
        LocalStore(tmp_path / "thesis.tex")


def test_other_schemes_are_refused() -> None:
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        LocalStore("ftp://host/x")


@pytest.mark.parametrize(("text", "says"), [
    ('{"format":2}', "format 2, this kvtool reads up to 1; upgrade kvtool"),
    ('{"format":"1"}', "format 1"), ("{}", "should say"), ("", "should say"), ("[]", "should say"),
    ("[" * 100_000, "should say"),
])  # fmt: skip
def test_a_newer_or_broken_marker_is_refused(store: LocalStore, text: str, says: str) -> None:
    (store.root / MARKER).write_text(text)
    before = bytes_of(store.root)
    with pytest.raises(StoreError, match=says):
        LocalStore(store.root)
    assert bytes_of(store.root) == before


# What is missing or broken in it


def test_a_missing_artifact_is_named_with_the_remedy(store: LocalStore) -> None:
    path = store.path_of(store["c.txt"].segments[0].variants["raw"])
    path.unlink()
    with pytest.raises(StoreError, match=rf"c.txt: its artifact {path} is missing; run the same prefill"):
        store.read("c.txt")


def test_no_such_variant_or_segment(store: LocalStore) -> None:
    with pytest.raises(
        StoreError, match=r"no variant 'kivi', only raw; run kvtool compress c.txt --recipe kivi"
    ):
        store.read("c.txt", variant="kivi")
    for segment in (1, -1):
        with pytest.raises(StoreError, match=rf"no segment {segment}; it has 1, counted from 0"):
            store.read("c.txt", segment=segment)


def test_artifacts_swapped_between_documents_are_refused(store: LocalStore) -> None:
    one, other = (store.path_of(store[name].segments[0].variants["raw"]) for name in THREE[:2])
    content = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(content)
    for name in THREE[:2]:
        with pytest.raises(ArtifactError, match="another artifact"):
            store.read(name)


def test_manifests_swapped_between_documents_are_refused(store: LocalStore) -> None:
    manifests = store.root / "manifests"
    shutil.copy(manifests / "c.txt.json", manifests / "docs" / "a.md.json")
    with pytest.raises(StoreError, match=r"is the manifest of 'c.txt', not of 'docs/a.md'"):
        store["docs/a.md"]


def test_a_manifest_past_the_limit_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_BYTES", 10)
    with pytest.raises(StoreError, match="larger than a manifest"):
        store["c.txt"]


def test_a_manifest_that_is_a_directory_is_no_document(store: LocalStore) -> None:
    (store.root / "manifests" / "odd.json").mkdir()
    assert list(store) == THREE
    with pytest.raises(KeyError):
        store["odd"]


# Removing


def test_collect_removes_only_what_nothing_refers_to(store: LocalStore) -> None:
    before = bytes_of(store.root)
    assert store.collect() == []
    with store.writing():
        pass
    store.remove("c.txt")
    unused = store.collect(dry_run=True)
    assert [p.stem for p in unused] == [
        v.artifact
        for v in Document.from_bytes(before["manifests/c.txt.json"], "").segments[0].variants.values()
    ]
    assert all(p.exists() for p in unused)
    assert store.collect() == unused
    after = bytes_of(store.root)
    assert before.keys() - after.keys() == {"manifests/c.txt.json", str(unused[0].relative_to(store.root))}
    assert all(after[name] == before[name] for name in after)


def test_an_artifact_shared_by_documents_stays_until_the_last_goes(store: LocalStore) -> None:
    with store.writing():
        store.commit(named(store, "copy.txt"))
    store.remove("c.txt")
    assert store.collect() == []
    assert store.read("copy.txt").n_tokens == 30
    store.remove("copy.txt")
    assert len(store.collect()) == 1


def test_a_broken_manifest_stops_collect(store: LocalStore) -> None:
    # It may refer to anything, so nothing is known to be unused.
    (store.root / "manifests" / "c.txt.json").write_bytes(b"{}")
    before = bytes_of(store.root)
    with pytest.raises(StoreError, match=r"c\.txt\.json"):
        store.collect()
    assert bytes_of(store.root) == before


def test_purge_removes_a_document_and_what_only_it_uses(store: LocalStore) -> None:
    store.commit(named(store, "twin"))
    before = bytes_of(store.root)
    with store.writing():
        assert not store.purge("docs/a.md")
    assert bytes_of(store.root) == before
    own = store.path_of(store["docs/a.md"].segments[0].variants["raw"])
    assert store.purge("docs/a.md")
    assert store.purge("twin")
    assert list(store) == ["c.txt", "docs/b.md"]
    assert not own.exists()
    # The prefix is everyone's, and c.txt is what its twin was.
    assert len(bytes_of(store.root)) == len(before) - 3
    assert store.read("c.txt").n_tokens
    assert store.purge("docs/a.md")


def test_collect_waits_for_writers(store: LocalStore) -> None:
    stray = store.root / "artifacts" / "ab" / ("ab" * 32 + ".safetensors")
    with store.writing():
        files.write_atomic(stray, [b"put, not yet committed"])
        collecting = threading.Thread(target=store.collect)
        collecting.start()
        collecting.join(0.2)
        assert collecting.is_alive()
        assert stray.exists()
    collecting.join(10)
    assert not stray.exists()


# Writing


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
    left = [place / f"{files.TEMPORARY}{'0' * 32}" for place in places]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert list(store) == THREE
    with store.writing():
        assert not any(path.exists() for path in left)


def test_a_writer_leaves_alone_what_another_is_writing(store: LocalStore) -> None:
    with store.writing():
        living = store.root / f"{files.TEMPORARY}{'0' * 32}"
        living.write_bytes(b"half")
        with LocalStore(store.root).writing():
            assert living.exists()


@pytest.mark.parametrize("left", [".tmp-0123", "lock"])
def test_a_writer_killed_before_the_marker_leaves_a_store_that_opens(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_bytes(b"")
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
        found = path.read_bytes() if path.exists() else None
        assert found in (old, b"the new one")
        outcomes.add(found)
        files.remove_temporaries(tmp_path)
        assert list(path.parent.iterdir() if path.parent.exists() else []) == ([path] if found else [])
        if not died:
            break
    assert outcomes == {old, b"the new one"}
    assert line > 10


def test_json_of_the_marker_is_what_the_message_says(store: LocalStore) -> None:
    assert json.loads((store.root / MARKER).read_bytes()) == {"format": 1}
