"""kvtool as a process: what it imports, its signals, its pipes, its terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvtool
from kvtool.store.local import LocalStore

KVTOOL = [sys.executable, "-m", "kvtool"]
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "blake3",
    "rich.progress",
    "pydantic",
    "huggingface_hub",
}


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KVTOOL, *args], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, kvtool.cli; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kvtool.commands.ask" in process.stdout.split()
    assert not HEAVY & set(process.stdout.split())


@pytest.mark.parametrize("command", ["--help", "ls", "ls --json", "rm c.txt", "gc"])
def test_commands_of_manifests_alone_import_no_torch(store: LocalStore, command: str) -> None:
    code = "import sys, kvtool.cli; kvtool.cli.app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True)
    modules = done.stdout.splitlines()[-1].split()
    assert "kvtool.cli" in modules
    assert not {"torch", "transformers", "numpy"} & set(modules)


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    assert run("--version").returncode == 0
    usage = run("--frobnicate")
    assert (usage.returncode, usage.stdout) == (2, "")
    failed = run("show", "x", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    missing = f"kv-store: there is no store at {tmp_path}/kv-store; run kvtool prefill first, or name another with --store"
    assert failed.stderr == f"error: {missing}\n"


def test_a_reader_that_goes_away_is_no_traceback(store: LocalStore) -> None:
    with subprocess.Popen(
        [*KVTOOL, "ls", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 1, 120, 141)


def in_terminal(*args: str, **env: str) -> str:
    """What kvtool writes to a terminal."""
    ours, theirs = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")}
    process = subprocess.Popen(
        [*KVTOOL, *args], stdout=theirs, stderr=theirs, env=base | {"TERM": "xterm"} | env
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # the terminal's other end is closed
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return written.decode()


COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])(?:;\d+)*m")


def test_no_color() -> None:
    assert COLOR.search(in_terminal("--help"))
    assert not COLOR.search(in_terminal("--help", NO_COLOR="1"))


@pytest.mark.slow
def test_interrupted_and_run_again(corpus: Path, tiny_dir: Path, tiny: kvtool.Model) -> None:
    for n in range(100):
        (corpus / "docs" / f"{n:03}.md").write_text(f"Document {n}. " * 4)
    # Every document in a pass of its own, so that there is a middle to interrupt.
    arguments = ["prefill", "docs", "--model", str(tiny_dir), "--device", "cpu", "--pack-tokens", "0"]
    with subprocess.Popen(
        [*KVTOOL, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 100
        while not list(corpus.glob("kv-store/manifests/**/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted; what was finished is stored")
    assert "Traceback" not in errors
    store = LocalStore("kv-store")
    done = len(store)
    assert 0 < done < 102
    for document in store.values():
        for variant in document.artifacts:
            store.open_artifact(variant).verify()
    before = {p: p.read_bytes() for p in store.root.rglob("*.*") if p.is_file()}
    report = kvtool.prefill(["docs"], model=tiny, store=store, pack_tokens=0)
    assert len(report.unchanged) == done
    assert len(store) == 102
    after = {p: p.read_bytes() for p in store.root.rglob("*.*") if p.is_file()}
    assert after.items() >= before.items()
    # As one run that was not interrupted.
    kvtool.prefill(["docs"], model=tiny, store=LocalStore("whole"), pack_tokens=0)
    assert {p.relative_to(store.root): data for p, data in after.items()} == {
        p.relative_to("whole"): p.read_bytes() for p in Path("whole").rglob("*.*") if p.is_file()
    }
