"""The same input gives the same bytes, also when the run was killed on the way, again and again."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kvtool

DOCUMENTS, KILLS = 30, 20
OPTIONS = ["--segment-tokens", "500", "--step-tokens", "128", "--pack-tokens", "384"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work")
    (root / "docs").mkdir()
    draw = random.Random(5)
    words = [
        "a",
        "store",
        "that",
        "was",
        "killed",
        "holds everything",
        "committed",
        "before, and",
        "no halves.",
    ]
    for n in range(DOCUMENTS):
        text = " ".join(draw.choices(words, k=draw.choice([10, 30, 60, 150])))
        (root / "docs" / f"{n:02}.txt").write_text(text)
    # The same text under another name: one artifact, two documents.
    (root / "docs" / "twin.txt").write_text((root / "docs" / "07.txt").read_text())
    return root


def files(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def arguments(store: str, model: Path) -> list[str]:
    return ["prefill", "docs", "--store", store, "--model", str(model), "--json", *OPTIONS]


@pytest.fixture(scope="module")
def undisturbed(folder: Any, tiny_dir: Path) -> dict[str, bytes]:
    """The files of a store made by the command in one go, in a process of its own."""
    code = "from kvtool.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments("undisturbed", tiny_dir)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout)["prefilled"]) == DOCUMENTS + 1
    return files(folder / "undisturbed")


@pytest.mark.slow
def test_the_same_input_twice(
    folder: Any, tiny_dir: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = {"segment_tokens": 500, "step_tokens": 128, "pack_tokens": 384}
    model = kvtool.load_model(tiny_dir)
    kvtool.prefill(["docs"], model=model, store=kvtool.Store("twice"), **options)
    assert files(Path("twice")) == undisturbed
    # A third run over what is there changes nothing and never loads the weights.
    model = kvtool.load_model(tiny_dir)
    report = kvtool.prefill(["docs"], model=model, store=kvtool.Store("twice"), **options)
    assert (report.prefilled, len(report.unchanged), report.tokens) == ([], DOCUMENTS + 1, 0)
    assert "model" not in vars(model)
    assert files(Path("twice")) == undisturbed


PRELOADED = [
    "kvtool.commands.prefill",
    "kvtool.prefilling.prefill",
    "transformers.distributed.checkpoint",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
]

# ``kvtool`` in a process that has done its imports.
COMMAND = """
import contextlib, os, sys
from kvtool.cli import main

os.chdir(folder)
sys.argv = ["kvtool", *arguments]
with open("out.json", "w") as file, contextlib.redirect_stdout(file):
    main()
"""


@pytest.mark.slow
def test_killed_again_and_again(folder: Any, tiny_dir: Path, undisturbed: Any) -> None:
    # Importing torch takes longer than the run: a server that has done so forks a process for every run.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    draw = random.Random(11)
    script = folder / "command.py"
    script.write_text(COMMAND)

    def start(store: Path) -> Any:
        values = {"arguments": arguments(store.name, tiny_dir), "folder": str(folder)}
        process = server.Process(target=runpy.run_path, args=(str(script), values), daemon=True)
        process.start()
        return process

    def finish(store: Path) -> None:
        """Runs to the end, checks that nothing is done twice, and compares with the undisturbed store."""
        before = committed(store)
        process = start(store)
        process.join()
        assert process.exitcode == 0
        report = json.loads((folder / "out.json").read_text())
        assert report["unchanged"] == [name for name in everything if name in before]
        assert sorted(report["prefilled"]) == sorted(everything - before.keys())
        assert files(store) == undisturbed

    everything = dict.fromkeys(committed(folder / "undisturbed")).keys()
    finish(folder / "timed-0")  # the first one pays for the server
    started = time.monotonic()
    finish(folder / "timed-1")
    duration = time.monotonic() - started

    # One moment in each twentieth of a run, in no order; a store goes on from where it was killed.
    moments = [(n + draw.random()) / KILLS * duration for n in range(KILLS)]
    draw.shuffle(moments)
    partly, number, store = 0, 0, folder / "killed-0"
    for moment in moments:
        before = committed(store)
        process = start(store)
        process.join(moment)
        completed = process.exitcode == 0
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        after = committed(store)
        assert before.keys() <= after.keys(), "what was committed is gone"
        assert all(after[name] == bytes_ for name, bytes_ in before.items())
        partly += 0 < len(after) < len(everything)
        if completed or len(after) == len(everything) or number % 2 == 0:
            # Every second store is killed until it is whole, the others are finished after their first kill.
            finish(store)
            number += 1
            store = folder / f"killed-{number}"
    finish(store)
    assert partly > KILLS // 5, "most kills fell before or after the work; nothing was tested"


def committed(root: Path) -> dict[str, bytes]:
    """Documents listed by the store, each read whole, every byte checked."""
    if not root.exists():
        return {}
    store = kvtool.Store(root)
    documents = {}
    for name, document in store.items():
        for segment in range(len(document.segments)):
            store.read(name, segment=segment)
            store.open(name, segment=segment).verify()
        if document.prefix_artifact:
            store.open_artifact(document.prefix_artifact).verify()
        documents[name] = document.to_bytes()
    return documents
