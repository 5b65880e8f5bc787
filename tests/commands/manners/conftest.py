"""A project, its store and an example of every command, so that what all commands should do is tested of all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
from click import Command
from typer.testing import CliRunner, Result

import kvtool
from kvtool.cli import app
from kvtool.errors import DONE, GATE
from kvtool.recommendation import recommend


def commands_of(group: Any, *names: str) -> dict[str, Command]:
    """Every command by its words, such as "connector proxy"."""
    found: dict[str, Command] = {}
    for name, command in group.commands.items():
        words = (*names, name)
        found |= commands_of(command, *words) if hasattr(command, "commands") else {" ".join(words): command}
    return found


COMMANDS: Mapping[str, Command] = commands_of(typer.main.get_command(app))

EVAL = ("--metrics", "kl,retrieval,answers,times", "--context", "128", "--tokens", "16", "--lengths", "512")
FEW = ("--haystacks", "1", "--repeats", "1", "--questions", "questions.jsonl", "--answer-tokens", "4")
ASK = ("--doc", "docs/a.md", "--max-tokens", "2")

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "prefill": ("prefill", "docs/a.md", "new.txt"),
    "calibrate": ("calibrate", "docs/a.md", "--recipe", "klt", "--tokens", "256"),
    "compress": ("compress", "--recipe", "lossless"),
    "blend": ("blend", "docs/a.md", "docs/b.md", "--save", "both"),
    "ask": ("ask", "What?", *ASK),
    "ask several": ("ask", "What?", "And?", *ASK, "--doc", "docs/b.md"),
    "eval": ("eval", "docs/a.md", "--recipes", "kivi:bits=4:recent=0", *EVAL, *FEW, "--max-kl", "1e9"),
    "recommend": ("recommend", "docs/a.md", "--recipes", "lossless"),
    "bench": ("bench", "--tokens", "64", "--recipes", "raw,lossless", "--repeats", "1"),
    "init": ("init",),
    "build": ("build",),
    "build check": ("build", "--check"),
    "ls": ("ls",),
    "show": ("show", "docs/a.md"),
    "verify": ("verify",),
    "rm": ("rm", "docs/a.md"),
    "gc": ("gc",),
    "gc by rules": ("gc", "--max-size", "1KB", "--variants", "raw"),
    "pin": ("pin", "docs/a.md"),
    "keygen": ("keygen", "new"),
    "sign": ("sign", "--key", "key.pem"),
    "encrypt": ("encrypt",),
    "keygen for encryption": ("keygen", "new", "--encryption"),
    "push": ("push", "there"),
    "pull": ("pull", "file://{place}/there"),
    "recipes": ("recipes",),
    "recipes klt": ("recipes", "klt"),
    "connector vllm": ("connector", "vllm"),
    "doctor": ("doctor",),
    "install-model": ("install-model", "--dry-run"),
    "schema": ("schema", "ls"),
}
"""By a name that begins with the command's."""


def command_of(example: str) -> str:
    """The command that an example is of."""
    return next(name for name in COMMANDS if f"{example} ".startswith(f"{name} "))


CODES = {"build check": (GATE,), "doctor": (DONE, GATE)}
"""Where it is not 0 alone: nothing was built before, and a machine may lack something."""

EMPTY = {"push": "there", "pull": "kv-store"}
"""What is taken away first."""

NOT_RUN = {
    "demo": "takes half a minute, and calls other commands",
    "serve-cache": "runs until it is stopped",
    "connector proxy": "runs until it is stopped",
}

BUILD = """
[build]
documents = ["docs"]

[build.measure]
context = 128
tokens = 16

[[build.variants]]
recipe = "kivi"
bits = 4
gate = { max_kl = 1e9 }
"""


WORDS = "ship left harbour at dawn with seven sailors cargo apples bread rope"


def prose(words: int, seed: int) -> str:
    drawn = random.Random(seed)
    known = WORDS.split()
    return " ".join(" ".join(drawn.choices(known, k=9)).capitalize() + "." for _ in range(words // 9))


@pytest.fixture(scope="session")
def project_dir(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents, prefilled and compressed, a copy of their store, questions about them and a third file."""
    model_dir = make_model(tmp_path_factory.mktemp("manners") / "model", max_position_embeddings=2048)
    place = tmp_path_factory.mktemp("project")
    (place / "docs").mkdir()
    for seed, name in enumerate("ab"):
        (place / f"docs/{name}.md").write_text(prose(110, seed))
    (place / "new.txt").write_text("Something new.")
    (place / "questions.jsonl").write_text('{"document": "docs/a.md", "question": "What left?"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        model = kvtool.load_model(model_dir, device="cpu")
        kvtool.prefill(["docs"], model=model, store=kvtool.Store("kv-store"))
        kvtool.compress(kvtool.Store("kv-store"), recipe="kivi", bits=4)
        shutil.copytree("kv-store", "there")
        CliRunner().invoke(app, ["keygen", "key"])
        CliRunner().invoke(app, ["keygen", "key", "--encryption"])
    (place / "model").symlink_to(model_dir)
    return place


@dataclass(frozen=True)
class Run:
    """Runs the example ``name`` in ``place``, a copy of the project."""

    place: Path

    def prepare(self, name: str) -> None:
        """Makes the project one for which the example has something to do."""
        if name.startswith("build"):
            (self.place / "kvtool.toml").write_text(BUILD)
        if name in EMPTY:
            shutil.rmtree(self.place / EMPTY[name], ignore_errors=True)

    def __call__(self, name: str, *flags: str, code: int | None = None) -> Result:
        self.prepare(name)
        words = [word.replace("{place}", str(self.place)) for word in EXAMPLES[name]]
        result = CliRunner().invoke(app, [*words, *flags])
        expected = CODES.get(name, (DONE,)) if code is None else (code,)
        assert result.exit_code in expected, (name, flags, result.stdout, result.stderr)
        return result

    def files(self) -> dict[str, bytes]:
        """All files of the project, without those that only say who may write."""
        paths = (path for path in self.place.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {path.relative_to(self.place).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def run(project_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    place = tmp_path / "project"
    shutil.copytree(project_dir, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("KVTOOL_MODEL", str((place / "model").resolve()))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", "key.key")
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    small = replace(recommend.SCOPE, documents=1, context=128, tokens=16, lengths=(512,), repeats=1)
    monkeypatch.setattr(recommend, "SCOPE", small)
    return Run(place)
