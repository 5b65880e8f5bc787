"""kvtool rm and kvtool gc: what is removed, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import FAILED, USAGE
from kvtool.store.local import LocalStore
from tests.commands.conftest import THREE, Cli, error_of


def test_rm_and_gc(cli: Cli, store: LocalStore) -> None:
    before = sorted(store.root.rglob("*"))
    assert "would remove c.txt" in cli("rm", "c.txt", "--dry-run").stderr
    assert sorted(store.root.rglob("*")) == before
    artifact = store.path_of(store["c.txt"].segments[0].variants["raw"])
    assert "freed 1 artifact" in cli("rm", "c.txt").stderr
    assert not artifact.exists()
    assert list(store) == THREE[1:]
    store.remove("docs/a.md")
    unused = cli("gc", "--dry-run").stdout.splitlines()
    assert len(unused) == 1
    assert Path(unused[0]).exists()
    assert cli("gc").stdout == ""
    assert not Path(unused[0]).exists()
    cli("verify")


def test_rm_of_one_unknown_name_removes_none(cli: Cli, store: LocalStore) -> None:
    assert "docs/a.md" in error_of(cli("rm", "c.txt", "docs/a.mb", code=FAILED))
    assert list(store) == THREE


def test_rm_leaves_what_an_interrupted_prefill_of_another_document_has_finished(
    cli: Cli, store: LocalStore, tiny: kvtool.Model, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "long.md").write_text("".join(f"Row {n} costs 3 crowns.\n" for n in range(60)))
    put, finished = LocalStore.put, 0

    def interrupted(self: LocalStore, content: object) -> object:
        nonlocal finished
        if finished == 3:
            raise KeyboardInterrupt
        finished += 1
        return put(self, content)  # type: ignore[arg-type]

    options = {"model": tiny, "store": store, "segment_tokens": 100, "pack_tokens": 0}
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kvtool.prefill("long.md", **options)  # type: ignore[arg-type]
    assert "freed 1 artifact" in cli("rm", "c.txt", "c.txt").stderr
    assert "long.md" not in store
    report = kvtool.prefill("long.md", **options)  # type: ignore[arg-type]
    segments = store["long.md"].segments
    assert report.tokens == sum(segment.n_tokens for segment in segments[finished:]) > 0


def test_rm_leaves_what_another_document_uses(cli: Cli, store: LocalStore, tiny: kvtool.Model) -> None:
    Path("copy.txt").write_bytes(Path("c.txt").read_bytes())
    kvtool.prefill("copy.txt", model=tiny, store=store)
    assert "freed 0 artifacts" in cli("rm", "c.txt").stderr
    assert store.read("copy.txt").n_tokens == 30
    assert "freed 1 artifact" in cli("rm", "copy.txt").stderr


HOLD = "import sys, kvtool\nwith kvtool.Store(sys.argv[1]).writing():\n    print('held', flush=True)\n    sys.stdin.read()"


@pytest.fixture
def writer(store: LocalStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the store until its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_dry_run_waits_for_nobody(cli: Cli, store: LocalStore, writer: subprocess.Popen[str]) -> None:
    cli("rm", "c.txt", "--dry-run")
    store.remove("c.txt")
    report = json.loads(cli("gc", "--dry-run", "--json").stdout)
    assert len(report["removed"]) == 1
    assert [name.endswith(f"(process {writer.pid})") for name in report["writers"]] == [True]
    assert f"(process {writer.pid}) has not committed yet" in cli("gc", "--dry-run").stderr


@pytest.mark.parametrize("command", [["gc"], ["rm", "c.txt"]], ids=" ".join)
def test_who_is_waited_for_is_said_before_anything_is_done(
    store: LocalStore, writer: subprocess.Popen[str], command: list[str]
) -> None:
    line = [sys.executable, "-m", "kvtool", *command]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        first = waiting.stderr.readline()
        assert first.startswith("kv-store/lock: waiting for ")
        assert first.endswith(f"(process {writer.pid})\n")
        assert "c.txt" in store
        assert writer.stdin is not None
        writer.stdin.close()
        assert "freed 1" in waiting.stderr.read() or command == ["gc"]
        assert waiting.wait() == 0


def test_gc_by_rules(cli: Cli, store: LocalStore) -> None:
    cli("pin", "c.txt")
    assert cli("pin").stdout == "c.txt\n"
    before = sorted(store.root.rglob("*"))
    plan = cli("gc", "--max-size", "0B", "--dry-run")
    assert "docs/a.md (size)" in plan.stdout
    assert "would remove 2 documents and 2 artifacts" in plan.stderr
    assert "since the rest is pinned" in plan.stderr
    assert sorted(store.root.rglob("*")) == before
    report = json.loads(cli("gc", "--max-age", "0s", "--json").stdout)
    assert report["documents"] == {"docs/a.md": "age", "docs/b.md": "age"}
    assert list(store) == ["c.txt"]
    cli("pin", "c.txt", "--remove")
    assert cli("pin").stdout == ""
    assert "removed 1 document and 2 artifacts; 0 B left" in cli("gc", "--max-idle", "0s").stderr


def test_gc_keeps_variants(cli: Cli, store: LocalStore) -> None:
    kvtool.compress(store, recipe="nf4")
    assert cli("gc", "--variants", "nf4,klt").stdout.splitlines()[0] == "c.txt (other variants)"
    assert store["c.txt"].variants == ["nf4"]
    cli("verify")


def test_gc_of_a_rule_that_is_none(cli: Cli, store: LocalStore) -> None:
    assert "--max-size 20XB: is not a size; expected one such as 500MB" in error_of(
        cli("gc", "--max-size", "20XB", code=USAGE)
    )
    assert "--max-age 30: is not a span of time" in error_of(cli("gc", "--max-age", "30", code=USAGE))
    assert "c.tx" in error_of(cli("pin", "c.tx", code=FAILED))
    assert "needs the names" in error_of(cli("pin", "--remove", code=USAGE))
    assert list(store) == THREE
