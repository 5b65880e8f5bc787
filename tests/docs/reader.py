"""A reader of the pages: a folder with documents and their caches, and what is done there with a block."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app
from kvtool.config import settings
from kvtool.pipeline.project import read_project
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Limits, Service
from tests.docs.blocks import ROOT, Block, Command, commands
from tests.loopback import Objects, listen

ADDRESS = "http://127.0.0.1:8400"
VERBS: Any = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__mro__[1]
"""Of what a command line has too much, too little or wrong; typer does not name it."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def check_command(words: Sequence[str]) -> None:
    """Asserts that kvtool takes these flags and values. Nothing is run."""
    verb, rest = verb_of(words)
    with VERBS.make_context("kvtool", list(words[1:])) as context:
        try:
            verb.make_context(verb.name, rest, parent=context)
        except UsageError as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


def check_flags(text: str) -> None:
    """Asserts that a command that a sentence names is one, and has the flags that are named with it."""
    verb, _ = verb_of(text.split())
    known = {flag for parameter in verb.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    unknown = set(re.findall(r"(?<!\S)--[a-z-]*[a-z]", text)) - known - {"--help"}
    assert not unknown, f"{text}: kvtool {verb.name} has no {unknown}"


def verb_of(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` name, one of a group or not, and the words after it."""
    verb, rest = VERBS, list(words[1:])
    while rest and hasattr(verb, "commands"):
        assert rest[0] in verb.commands, f"kvtool has no command {rest[0]}"
        verb = verb.commands[rest.pop(0)]
    return verb, rest


def check_shell(text: str) -> None:
    """Asserts that the commands of a block that is not run are right, so far as they are kvtool's."""
    for command in commands(text):
        _check(command)


def _check(command: Command | None) -> None:
    if command is None:
        return
    _check(command.input)
    if command.words[0] == "kvtool":
        check_command(command.words)
    elif command.words[:2] == ("pip", "install"):
        for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(command.words)):
            assert set(extras.split(",")) <= set(EXTRAS), f"kvtool has not all extras of {extras}"


def _run_curl(arguments: Sequence[str]) -> str:
    strict = ["curl", "--fail", "--silent", "--show-error", "--max-time", "30"]
    done = subprocess.run([*strict, *arguments], check=True, capture_output=True)
    return done.stdout.decode(errors="replace")


def _parse(block: Block) -> None:
    if block.language == "python":
        compile(block.text, str(block), "exec")
    else:
        check_shell(block.text)


@dataclass
class Reader:
    """Works in ``folder``, the working directory, page by page. ``model`` made the caches of its store."""

    folder: Path
    model: kvtool.Model
    patch: pytest.MonkeyPatch
    objects: Objects | None = None
    names: dict[str, Any] = field(default_factory=dict)

    def do(self, block: Block) -> None:
        """What a block says, after what it needs has been set up."""
        if name := block.needs.get("file"):
            (self.folder / name).write_text(block.text)
        elif "parse" in block.needs:
            _parse(block)
        elif block.language == "toml":
            self._read_toml(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language:
            self._run_block(block)

    def _read_toml(self, text: str) -> None:
        """As kvtool reads it in another folder."""
        project = self.folder / "project"
        project.mkdir()
        (project / "kvtool.toml").write_text(text)
        with contextlib.chdir(project):
            read = settings()
            if "build" in tomllib.loads(text):
                read_project(read)
        shutil.rmtree(project)

    def _run_block(self, block: Block) -> None:
        for command in commands(block.needs.get("after", "")):
            self._run(command, 0)
        if "bucket" in block.needs:
            assert self.objects
            self.objects.copy(self.folder / "kv-store", "guides")
        serving = self._server(block.needs["server"] or "kv-store") if "server" in block.needs else None
        with serving or contextlib.nullcontext(ADDRESS) as address:
            text = block.text.replace(ADDRESS, address)
            if block.language == "python":
                self._run_python(text, str(block))
                expected = block.needs.get("expect", "True")
                assert eval(expected, self.names), expected
            elif "alternatives" in block.needs:
                self._run_alternatives(text)
            else:
                self._run_shell(text, int(block.needs.get("exit", 0)))

    def _run_python(self, text: str, name: str) -> None:
        """With the names of earlier blocks, and the two that most pages use without saying where they come from."""
        self.names = {"kvtool": kvtool, "model": self.model, "store": kvtool.Store("kv-store")} | self.names
        exec(compile(text, name, "exec"), self.names)

    def _run_alternatives(self, text: str) -> None:
        before = shutil.copytree(self.folder / "kv-store", self.folder / "before")
        for command in commands(text):
            self._run(command, 0)
            shutil.rmtree(self.folder / "kv-store")
            shutil.copytree(before, self.folder / "kv-store")
        shutil.rmtree(before)

    def _run_shell(self, text: str, code: int) -> None:
        *first, last = commands(text)
        for command in first:
            self._run(command, 0)
        self._run(last, code)

    def _run(self, command: Command, code: int) -> str:
        given = self._run(command.input, 0) if command.input else ""
        for word in command.words:
            assert not word.startswith("/"), f"{word} is not in the reader's folder"
        words = [re.sub(r"^~(?=/)", str(Path.home()), word) for word in command.words]
        if words[0] == "kvtool":
            printed = self._run_kvtool(words[1:], given, code)
        elif words[0] == "echo":
            printed = " ".join(words[1:]) + "\n"
        elif words[0] == "export":
            name, _, value = words[1].partition("=")
            self.patch.setenv(name, value)
            printed = ""
        elif words[0] == "curl":
            printed = _run_curl(words[1:])
        else:
            assert words[:2] == ["pip", "install"], f"how is {words[0]} run?"
            _check(command)
            printed = ""
        if command.output:
            (self.folder / command.output).write_text(printed)
        return printed

    def _run_kvtool(self, arguments: Sequence[str], given: str, code: int) -> str:
        with _without_listening(self.patch):
            done = CliRunner().invoke(app, arguments, input=given)
        assert done.exit_code == code, (arguments, done.stdout[-2000:], done.stderr[-2000:], done.exception)
        return done.stdout

    @contextlib.contextmanager
    def _server(self, store: str) -> Iterator[str]:
        # A tiny model prefills as fast as it loads, and the machine would decide which of both is done.
        loading = LoadOptions(variant="raw")
        service = Service.over(Path(store), self.model, Limits(memory=10**9), loading=loading)
        service.warm_up()
        with listen(create_app(service)) as address:
            yield address


@contextlib.contextmanager
def _without_listening(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """``kvtool serve-cache`` does all that it does before it answers, at any free port, and then ends."""
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(patch.context())
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        inner.setattr("kvtool.server.http.server.listen", lambda host, port: socket.create_server((host, 0)))
        inner.setattr("kvtool.server.http.server.Server.run", lambda server, sockets: sockets[0].close())
        inner.setattr("kvtool.server.http.logs.set_up", lambda as_json: None)
        yield
