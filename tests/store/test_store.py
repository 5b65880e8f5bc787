"""A store is a mapping of documents that no reader, writer or crash damages."""

from __future__ import annotations

import shutil
import threading
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
from tests.store.conftest import bytes_of

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


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
        Store("ftp://host/x")


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
    assert before.keys() - after.keys() == {
        "manifests/c.txt.json",
        "sources/c.txt.json",
        str(unused[0].relative_to(store.root)),
    }
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
    assert len(bytes_of(store.root)) == len(before) - 4
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
