"""Files of one name from several folders: none replaces another silently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kvtool
from kvtool.commands.prefill import render
from kvtool.prefilling.report import Report
from kvtool.store.local import LocalStore

NAME = "docs/x.md"


@pytest.fixture
def run(tmp_path: Path, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Prefills the folder ``docs`` of project A or B from a folder beside both."""
    for project in "AB":
        (tmp_path / project / "docs").mkdir(parents=True)
        (tmp_path / project / NAME).write_text(f"Code of {project}.\n")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")

    def run(project: str, store: str = "../s", **options: bool) -> Report:
        return kvtool.prefill(f"../{project}/docs", model=tiny, store=LocalStore(store), **options)

    return run


def manifest() -> bytes:
    return Path("../s/manifests/docs/x.md.json").read_bytes()


def test_another_file_of_the_name_is_refused(run: Callable[..., Report], tmp_path: Path) -> None:
    run("A")
    before = manifest()
    for dry_run in (True, False):
        (problem,) = run("B", dry_run=dry_run).problems
        for text in (NAME, str(tmp_path / "A" / NAME), str(tmp_path / "B" / NAME), "--replace"):
            assert text in str(problem)
    assert manifest() == before


def test_replace_says_what_was_replaced(run: Callable[..., Report], tmp_path: Path) -> None:
    run("A")
    report = run("B", replace=True)
    assert report.prefilled == [NAME]
    assert report.to_json()["replaced"] == {NAME: str(tmp_path / "A" / NAME)}
    assert f"{NAME} replaced: it came from {tmp_path / 'A' / NAME}" in render(report).notes
    # It is B's from now on.
    Path("../B", NAME).write_text("Changed.\n")
    assert run("B").replaced == {}
    assert run("A").problems


def test_a_file_that_is_gone_is_replaced_and_named(run: Callable[..., Report], tmp_path: Path) -> None:
    run("A")
    shutil.rmtree(tmp_path / "A")
    report = run("B")
    assert report.prefilled == [NAME]
    assert report.replaced == {NAME: str(tmp_path / "A" / NAME)}


def test_the_same_text_is_the_same_document(run: Callable[..., Report], tmp_path: Path) -> None:
    run("A")
    shutil.copy(tmp_path / "A" / NAME, tmp_path / "B" / NAME)
    assert run("B").unchanged == [NAME]
    Path("../A", NAME).write_text("Changed.\n")
    assert run("A").prefilled == [NAME]


def test_a_project_can_be_moved_with_its_store(run: Callable[..., Report], tmp_path: Path) -> None:
    run("A", store="../A/kv-store")
    shutil.copytree(tmp_path / "A", tmp_path / "B", dirs_exist_ok=True)
    Path("../B", NAME).write_text("Changed in the copy.\n")
    report = run("B", store="../B/kv-store")
    assert (report.prefilled, report.replaced) == ([NAME], {})


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff", b'{"path":1,"text":"x"}'])
def test_a_store_without_a_sound_record_goes_on(run: Callable[..., Report], record: bytes) -> None:
    run("A")
    Path("../s/sources/docs/x.md.json").write_bytes(record)
    assert run("B").prefilled == [NAME]
    assert run("A").problems


def test_a_document_that_was_no_file_has_no_record(run: Callable[..., Report]) -> None:
    run("A")
    store = LocalStore("../s")
    document = store[NAME]
    assert store.sources.get(document) == Path("../A").resolve() / NAME
    store.remove(NAME)
    store.commit(document)
    assert store.sources.get(document) is None
