"""A build does what a change requires, and no more; its lock says what there is, and --check what is not so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtool.errors import FAILED, GATE
from kvtool.pipeline import build as module
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
    edit('recipe = "kivi"\nbits = 2', 'recipe = "kivi"\nname = "small"\nset = { group = 16 }')
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


def test_no_documents_remove_nothing(
    project: Path, cli: Cli, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    monkeypatch.setenv("KVTOOL_EXCLUDE", '["*"]')
    message = error_of(cli("build", code=FAILED))
    assert "build.documents manual: no document is there (passed over: 3 excluded)" in message
    assert list(LocalStore(project / "kv")) == PAGES


def test_a_lock_says_what_the_variants_are(project: Path, build: Build, edit: Edit) -> None:
    """Also where there was no lock: the store may have them as they were asked for before."""
    build()
    edit("bits = 4", "bits = 2")
    (project / "kvtool.lock").unlink()
    assert build()["compressed"] == {"kivi": PAGES}
    store = LocalStore(project / "kv")
    assert store["manual/a.md"].segments[0].variants["kivi"].recipe["pipeline"]["keys"][-2]["bits"] == 2


def test_a_document_somebody_compressed_otherwise(project: Path, cli: Cli, build: Build) -> None:
    cli("prefill", "manual/a.md", "--store", "kv")
    cli("compress", "--recipe", "kivi", "--bits", "2", "--store", "kv")
    assert build()["compressed"]["kivi"] == PAGES


def test_a_document_that_changes_meanwhile(
    project: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = module.compress

    def saved_meanwhile(*arguments: Any, **options: Any) -> Any:
        (project / "manual/b.md").write_text("Another text.")
        return compress(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "compress", saved_meanwhile)
        printed = build(code=FAILED)
    assert [one["reason"] for one in printed["problems"]] == ["has changed while it was built"]
    assert not (project / "kvtool.lock").exists()
    build()
    assert build()["differences"] == []


def test_what_others_made_is_not_replaced_or_removed(
    project: Path, cli: Cli, build: Build, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("prefill", "manual", "--store", "kv", "--system", "Somebody else's.")
    before = dict(LocalStore(project / "kv"))
    printed = build(code=FAILED)
    assert all("the store holds it for another prefix" in one["reason"] for one in printed["problems"])
    assert dict(LocalStore(project / "kv")) == before
    shutil.rmtree(project / "kv")
    build()
    cli("prefill", "manual/a.md", "--store", "kv", "--system", "Somebody else's.", "--replace")
    (project / "manual/a.md").unlink()
    printed = build()
    assert printed["removed"] == []
    assert [one["subject"] for one in printed["warnings"]] == ["manual/a.md"]
    assert "manual/a.md" in LocalStore(project / "kv")


def test_other_questions_are_another_measurement(project: Path, build: Build, edit: Edit) -> None:
    question = {"document": "manual/a.md", "segment": 0, "question": "Which page?"}
    (project / "questions.jsonl").write_text(json.dumps(question))
    edit("[build.measure]", '[build.measure]\nquestions = "questions.jsonl"\nanswer_tokens = 4')
    edit("max_kl = 0.01", "min_answers = 0.0")
    build()
    (project / "questions.jsonl").write_text(json.dumps({**question, "question": "Which one?"}))
    assert _subjects(build("--check", code=GATE)) == ["evaluate gate of lossless"]


def test_variants_of_a_prefill_are_locked(project: Path, build: Build, edit: Edit) -> None:
    edit('store = "kv"', 'store = "kv"\ncollect = ["snapkv"]')
    build()
    store = LocalStore(project / "kv")
    store.path_of(store["manual/a.md"].segments[0].variants["inputs"]).unlink()
    assert _subjects(build("--check", code=GATE)) == ["prefill manual/a.md"]
    build()
    assert build()["differences"] == []


def test_a_trial_beside_stops_nothing(project: Path, cli: Cli, build: Build, edit: Edit) -> None:
    build()
    for name, bits in (("manual/a.md", "2"), ("manual/b.md", "3")):
        cli("compress", name, "--recipe", "kivi", "--bits", bits, "--name", "try", "--store", "kv")
    edit("max_kl = 0.01", "max_kl = 0.02")
    assert [check["passed"] for check in build()["gate"]] == [True]


def test_a_broken_manifest_is_mended(project: Path, build: Build) -> None:
    build()
    before = (project / "kvtool.lock").read_bytes()
    (project / "kv/manifests/manual/a.md.json").write_text("{")
    assert "prefill manual/a.md" in _subjects(build("--check", code=GATE))
    build()
    assert (project / "kvtool.lock").read_bytes() == before


def test_two_checkouts_get_the_same_lock(
    project: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    other = project.parent / "other"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns("kv", "kvtool.lock"))
    monkeypatch.chdir(other)
    build()
    assert (other / "kvtool.lock").read_bytes() == (project / "kvtool.lock").read_bytes()


def test_two_builds_at_once_leave_what_one_does(project: Path, build: Build) -> None:
    command = [sys.executable, "-m", "kvtool", "build"]
    racing = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in racing:
        _, printed = one.communicate(timeout=120)
        assert one.returncode == 0, printed
    assert build("--check")["differences"] == []
    raced = (project / "kvtool.lock").read_bytes()
    store = LocalStore(project / "kv")
    assert list(store) == PAGES
    assert store.collect() == []
    for name in PAGES:
        for variant in store[name].artifacts:
            store.open_artifact(variant).verify()
    shutil.rmtree(project / "kv")
    (project / "kvtool.lock").unlink()
    build()
    assert (project / "kvtool.lock").read_bytes() == raced


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


def test_a_build_signs_what_has_passed_its_gates(
    project: Path, cli: Cli, build: Build, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("keygen", "ours")
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", "ours.pem")
    edit("gate = { max_kl = 0.01 }", "gate = { max_kl = -1 }")
    build(code=GATE)
    assert not any(document.signatures for document in LocalStore(project / "kv").values())
    edit("gate = { max_kl = -1 }", "gate = { max_kl = 0.01 }")
    build()
    lock = (project / "kvtool.lock").read_bytes()
    cli("verify", "--store", "kv", "--signed-by", "ours.pub.pem")
    assert build("--check")["differences"] == []
    cli("sign", "--store", "kv")
    assert (project / "kvtool.lock").read_bytes() == lock


def test_a_build_signs_what_it_has_built_and_nothing_else(
    project: Path, cli: Cli, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    cli("keygen", "ours")
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", "ours.pem")
    assert {one.split()[0] for one in _subjects(build("--check", code=GATE))} == {"sign"}
    # Without text it is no document of the store.
    (project / "manual/empty.md").write_text("")
    store = LocalStore(project / "kv")
    document = store["manual/a.md"]
    store.commit(document.with_variant(0, "evil", document.segments[0].variants["raw"]))
    assert build()["signed"] == PAGES
    assert "evil" not in store["manual/a.md"].signatures
    assert sorted(store["manual/a.md"].signatures) == ["kivi", "lossless", "raw"]
    unsigned = cli("verify", "--store", "kv", "--signed-by", "ours.pub.pem", code=GATE).stderr
    assert "manual/a.md: its variant evil is signed by nobody" in unsigned
    assert build()["differences"] == []
