"""A build does what a change requires, and no more; its lock says what there is, and --check what is not so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtool.errors import FAILED, GATE, USAGE
from kvtool.store.local import LocalStore
from tests.commands.conftest import Cli, error_of
from tests.commands.test_repeats import heavy_imports

Build = Callable[..., Mapping[str, Any]]
Edit = Callable[[str, str], None]

PAGES = ["manual/a.md", "manual/b.md", "manual/c.md"]


def _subjects(printed: Mapping[str, Any]) -> list[str]:
    return [f"{one['step']} {one['subject']}" for one in printed["differences"]]


def _lock(project: Path) -> Any:
    return json.loads((project / "kvtool.lock").read_bytes())


def _artifacts(entry: Any) -> set[str]:
    return {digest for segment in entry["segments"] for digest in segment["artifacts"].values()}


def test_a_first_build_makes_everything(project: Path, build: Build) -> None:
    printed = build()
    assert printed["prefilled"] == PAGES
    assert printed["compressed"] == {"kivi": PAGES, "lossless": PAGES}
    assert [check["passed"] for check in printed["gate"]] == [True]
    store, lock = LocalStore(project / "kv"), _lock(project)
    assert list(store) == list(lock["documents"]) == PAGES
    for name, entry in lock["documents"].items():
        for segment, held in zip(entry["segments"], store[name].segments, strict=True):
            assert segment["identity"] == held.identity
            assert segment["artifacts"] == {label: one.artifact for label, one in held.variants.items()}
        assert entry["prefix"] == store[name].prefix_artifact.artifact  # type: ignore[union-attr]
    assert printed["verified"] == len({one.artifact for name in PAGES for one in store[name].artifacts})
    assert lock["model"]["fingerprint"] == store["manual/a.md"].model["fingerprint"]
    assert list(lock["gates"]) == ["lossless"]


def test_nothing_changed_loads_no_model(project: Path, build: Build, tiny_dir: Path) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    assert build()["differences"] == []
    assert build("--check")["differences"] == []
    assert build("--dry-run")["differences"] == []
    assert heavy_imports("build", "--model", str(tiny_dir)) == "heavy:"
    assert (project / "kvtool.lock").read_bytes() == before


def test_an_edited_document_alone_is_built_again(project: Path, build: Build) -> None:
    build()
    before = _lock(project)["documents"]
    with (project / "manual/b.md").open("a") as page:
        page.write("One more sentence.")
    assert _subjects(build("--check", code=GATE)) == ["prefill manual/b.md"]
    assert _subjects(build("--dry-run")) == ["prefill manual/b.md"]
    printed = build()
    assert printed["prefilled"] == ["manual/b.md"]
    assert printed["compressed"] == {"kivi": ["manual/b.md"], "lossless": ["manual/b.md"]}
    after = _lock(project)["documents"]
    assert [name for name in PAGES if before[name] != after[name]] == ["manual/b.md"]
    assert printed["verified"] == len(_artifacts(after["manual/b.md"]))


def test_a_document_more_and_one_less(project: Path, build: Build) -> None:
    build()
    (project / "manual/d.md").write_text("Page 3: something else.")
    (project / "manual/a.md").unlink()
    assert _subjects(build("--check", code=GATE)) == ["prefill manual/d.md", "remove manual/a.md"]
    printed = build()
    assert (printed["prefilled"], printed["removed"]) == (["manual/d.md"], ["manual/a.md"])
    assert list(LocalStore(project / "kv")) == ["manual/b.md", "manual/c.md", "manual/d.md"]


def test_documents_of_others_are_left_alone(project: Path, cli: Cli, build: Build) -> None:
    cli("prefill", "c.txt", "--store", "kv")
    build()
    assert "c.txt" in LocalStore(project / "kv")
    assert "c.txt" not in _lock(project)["documents"]


def test_another_recipe_prefills_nothing(project: Path, build: Build, edit: Edit) -> None:
    build()
    edit("bits = 4", "bits = 2")
    printed = build()
    assert _subjects(printed) == ["compress variant kivi"]
    assert (printed["prefilled"], printed["compressed"]) == ([], {"kivi": PAGES})
    assert printed["gate"] == []
    edit('recipe = "kivi"\nbits = 2', 'recipe = "kivi"\nname = "small"\nset = { bits = 2 }')
    assert build()["compressed"] == {"small": PAGES}
    assert list(_lock(project)["variants"]) == ["small", "lossless"]


def test_another_setting_of_prefill_is_named(project: Path, build: Build, edit: Edit) -> None:
    build()
    edit('store = "kv"', 'store = "kv"\nsystem = "You are a manual."')
    assert _subjects(build("--check", code=GATE)) == ["prefill setting system"]
    assert build()["prefilled"] == PAGES
    assert build()["differences"] == []


def test_a_gate_that_is_too_tight(project: Path, cli: Cli, build: Build, edit: Edit) -> None:
    build()
    edit("bits = 4", "bits = 2\ngate = { max_kl = 1e-15 }")
    edit("[build.measure]", 'report = "page.html"\n[build.measure]')
    result = cli("build", code=GATE)
    assert "gate FAILED: kivi: KL " in result.stderr
    assert "kivi" in (project / "page.html").read_text()
    assert _subjects(build("--check", code=GATE)) == ["evaluate gate of kivi"]
    edit("1e-15", "1e9")
    assert [check["passed"] for check in build()["gate"]] == [True]
    assert build()["differences"] == []


def test_a_gate_that_cannot_be_measured(project: Path, cli: Cli, edit: Edit) -> None:
    edit("{ max_kl = 0.01 }", "{ min_answers = 0.5 }")
    assert "needs questions to answer" in error_of(cli("build", code=USAGE))
    assert not (project / "kvtool.lock").exists()


def test_two_checkouts_get_the_same_lock(
    project: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    other = project.parent / "other"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns("kv", "kvtool.lock"))
    monkeypatch.chdir(other)
    build()
    assert (other / "kvtool.lock").read_bytes() == (project / "kvtool.lock").read_bytes()


def test_a_lock_without_its_store(project: Path, build: Build) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    shutil.rmtree(project / "kv")
    assert len(_subjects(build("--check", code=GATE))) >= 3
    assert build()["prefilled"] == PAGES
    assert (project / "kvtool.lock").read_bytes() == before


def test_a_store_without_its_lock(project: Path, build: Build) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    (project / "kvtool.lock").unlink()
    assert _subjects(build("--check", code=GATE))[0] == "lock kvtool.lock"
    printed = build()
    assert (printed["prefilled"], printed["compressed"]) == ([], {})
    assert (project / "kvtool.lock").read_bytes() == before


def test_an_artifact_that_is_missing_or_cut(project: Path, build: Build) -> None:
    build()
    store = LocalStore(project / "kv")
    segment = store["manual/a.md"].segments[-1]
    store.path_of(segment.variants["kivi"]).write_bytes(b"cut")
    store.path_of(segment.variants["raw"]).unlink()
    assert _subjects(build("--check", code=GATE)) == ["prefill manual/a.md", "compress manual/a.md"]
    build()
    assert build()["differences"] == []
    store.open("manual/a.md", "kivi").verify()


def test_what_somebody_else_made_of_a_document(project: Path, cli: Cli, build: Build) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    cli("compress", "manual/a.md", "--recipe", "kivi", "--bits", "2", "--replace", "--store", "kv")
    assert _subjects(build("--check", code=GATE)) == ["compress manual/a.md"]
    build()
    assert (project / "kvtool.lock").read_bytes() == before


def test_a_lock_of_another_model(
    project: Path, build: Build, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    other = project.parent / "other-model"
    shutil.copytree(tiny_dir, other)
    config = json.loads((other / "config.json").read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    monkeypatch.setenv("KVTOOL_MODEL", str(other))
    assert _subjects(build("--check", code=GATE)) == ["prefill model name", "prefill model files"]
    assert build()["prefilled"] == PAGES
    assert build()["differences"] == []


def test_a_document_that_cannot_be_read_keeps_the_lock(project: Path, build: Build) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    (project / "manual/b.md").write_bytes(b"\x00\xff" * 100)
    (project / "manual/d.md").write_text("One more page.")
    printed = build(code=FAILED)
    assert [Path(one["subject"]).name for one in printed["problems"]] == ["b.md"]
    assert (project / "kvtool.lock").read_bytes() == before


def test_an_empty_document_is_no_difference(project: Path, build: Build) -> None:
    (project / "manual/empty.md").write_text("")
    build()
    assert build()["differences"] == []
    assert _lock(project)["documents"]["manual/empty.md"]["segments"] == []


def test_what_passed_is_pushed(project: Path, cli: Cli, build: Build, edit: Edit) -> None:
    edit("[build]", '[build]\npush = "shared"')
    edit("max_kl = 0.01", "max_kl = -1.0")
    build(code=GATE)
    assert not (project / "shared").exists()
    edit("max_kl = -1.0", "max_kl = 1.0")
    assert build()["pushed"] == PAGES
    assert dict(LocalStore(project / "shared")) == dict(LocalStore(project / "kv"))
    assert build()["differences"] == []
    with (project / "manual/b.md").open("a") as page:
        page.write("One more sentence.")
    assert build()["pushed"] == ["manual/b.md"]
    assert dict(LocalStore(project / "shared")) == dict(LocalStore(project / "kv"))


def test_a_push_that_fails_is_done_again(project: Path, build: Build, edit: Edit) -> None:
    edit("[build]", '[build]\npush = "shared"')
    (project / "shared").write_text("in the way")
    assert len(build(code=FAILED)["problems"]) == 1
    assert build("--check")["differences"] == []
    (project / "shared").unlink()
    printed = build()
    assert (_subjects(printed), printed["prefilled"], printed["pushed"]) == (["push shared"], [], PAGES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("documents =", "document =", r"unknown key build.document; did you mean documents\?"),
        ("bits = 4", "bist = 4", r"unknown key build.variants.0.bist; did you mean bits\?"),
        ("max_kl", "max_lk", r"unknown key build.variants.1.gate.max_lk; did you mean max_kl\?"),
        ("context = 128", "kontext = 1", r"unknown key build.measure.kontext; did you mean context\?"),
        ("0.01", '"much"', "build.variants.1.gate.max_kl: input should be a valid number"),
        ('["manual"]', "[]", "build.documents: tuple should have at least 1 item"),
        ('recipe = "lossless"', 'recipe = "kivi"', "variant kivi: is there twice"),
        ('store = "kv"', 'store = "s3://bucket"', "store s3:/.*: is read only"),
        ("[build]", "[build", "kvtool.toml: is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(cli: Cli, edit: Edit, old: str, new: str, message: str) -> None:
    edit(old, new)
    assert re.search(message, error_of(cli("build", code=USAGE)))


def test_without_a_table_there_is_nothing_to_build(corpus: Path, cli: Cli) -> None:
    assert "kvtool init writes a first file" in error_of(cli("build", code=USAGE))
    (corpus / "pyproject.toml").write_text(
        '[tool.kvtool]\nstore = "kv"\n[tool.kvtool.build]\ndocuments = ["docs"]\n'
    )
    cli("build")
    assert list(LocalStore(corpus / "kv")) == ["docs/a.md", "docs/b.md"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_what_is_no_lock_is_refused(project: Path, cli: Cli, text: str) -> None:
    (project / "kvtool.lock").write_text(text)
    assert "kvtool.lock: is " in error_of(cli("build", code=USAGE))
