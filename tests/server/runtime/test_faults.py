"""Faults while others are being answered: nobody else notices, and nothing that was committed is lost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.read import Artifact
from kvtool.ask import ask
from kvtool.cli import app as commands
from kvtool.store.local import LocalStore
from tests.server.asking import chat_body, post_chat, text_of

pytestmark = pytest.mark.slow

QUESTIONS = ("How many ships?", "What is kept?")
CLIENTS = 8
TOKENS = 10


@dataclass
class Seen:
    """Answers, by document: how many were right, which were wrong, and which were refused with what."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused: list[tuple[str, int, Any]] = field(default_factory=list)

    def wait(self, name: str, more: int = 3) -> None:
        """Until ``more`` further answers over a document were right."""
        goal, until = self.right[name] + more, time.monotonic() + 30
        while self.right[name] < goal:
            assert time.monotonic() < until, f"nobody is answered over {name}: {self}"
            time.sleep(0.01)


def asked(url: str, method: str, path: str, **body: Any) -> tuple[int, Any]:
    answer = httpx.request(method, f"{url}/v1/{path}", timeout=30, **body)
    return answer.status_code, answer.json()


def streamed(text: str) -> str:
    """The text of an answer's events, which must end as they should."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert events.pop() == "[DONE]", events
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


@contextmanager
def load(url: str, expected: dict[tuple[str, str], str]) -> Iterator[Seen]:
    """Clients that ask all the time, each answer compared to the one that is given alone."""
    seen, done = Seen(), threading.Event()

    def ask_on(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for turn in itertools.count(number):
                if done.is_set():
                    return
                (name, question), right = list(expected.items())[turn % len(expected)]
                is_streamed = turn % 2 == 0
                answer = post_chat(client, question, documents=[name], max_tokens=TOKENS, stream=is_streamed)
                if answer.status_code != 200:
                    seen.refused.append((name, answer.status_code, answer.json()))
                    continue
                text = streamed(answer.text) if is_streamed else text_of(answer.json())
                if text == right:
                    seen.right[name] += 1
                else:
                    seen.wrong.append(f"{name}: {text!r}, alone {right!r}")

    clients = [threading.Thread(target=ask_on, args=(number,)) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in clients:
            thread.join()


@pytest.fixture
def expected(documents: LocalStore, served: kvtool.Model) -> dict[tuple[str, str], str]:
    return {
        (name, question): ask(question, name, served, documents, max_tokens=TOKENS).text
        for name in documents
        for question in QUESTIONS
    }


def test_clients_that_vanish(running: Any, expected: dict[tuple[str, str], str]) -> None:
    with running() as server, load(server.url, expected) as seen:
        for _ in range(20):
            body = chat_body("Tell me everything.", documents=["docs/a.txt"], max_tokens=1000, stream=True)
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                next(answer.iter_raw())
        seen.wait("docs/a.txt")
    assert not seen.wrong
    assert not seen.refused


def test_an_artifact_flipped_on_disk(
    running: Any, expected: dict[tuple[str, str], str], documents: LocalStore
) -> None:
    broken = documents.path_of(documents["docs/c.txt"].segments[0].variants["raw"])
    # With room for hardly more than one document at a time, each is read again and again.
    with running("--memory", "0.00025") as server, load(server.url, expected) as seen:
        for name in documents:
            seen.wait(name)
        data = bytearray(broken.read_bytes())
        data[-1000] ^= 1
        broken.write_bytes(data)
        until = time.monotonic() + 30
        while not seen.refused and time.monotonic() < until:
            time.sleep(0.01)
        seen.wait("docs/a.txt")
        seen.wait("docs/b.txt")
    assert not seen.wrong
    assert {(name, status) for name, status, _ in seen.refused} == {("docs/c.txt", 500)}
    assert all("cannot be used" in body["error"]["message"] for _, _, body in seen.refused)
    assert not any(str(Path.cwd()) in str(body) for _, _, body in seen.refused)


def unanswered(url: str) -> None:
    with httpx.Client(base_url=url) as client, pytest.raises(httpx.TransportError):
        post_chat(client, "?" * 400, documents=["docs/a.txt"])


def test_killed_and_started_again(
    running: Any, expected: dict[tuple[str, str], str], documents: LocalStore
) -> None:
    before = {path: path.read_bytes() for path in documents.root.rglob("*.safetensors")}
    with running() as server:
        asking = threading.Thread(target=unanswered, args=[server.url])
        asking.start()
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(10) == -signal.SIGKILL
        asking.join()
    with running() as server, load(server.url, expected) as seen:
        for name in documents:
            seen.wait(name)
    assert not seen.wrong
    assert not seen.refused
    assert {path: path.read_bytes() for path in documents.root.rglob("*.safetensors")} == before


# A full disk


@dataclass(frozen=True)
class Disk:
    """A file system of ``SIZE`` bytes."""

    SIZE = 4 << 20

    root: Path

    def fill(self, *, but: int = 0) -> None:
        """Leaves no more room than ``but`` bytes."""
        stat = os.statvfs(self.root)
        with (self.root / "filler").open("ab") as file:
            file.write(bytes(max(0, stat.f_bavail * stat.f_frsize - but)))

    def empty(self) -> None:
        (self.root / "filler").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """It is mounted in a namespace of its own, for which nobody needs to be root, and seen through the process in it."""
    at = tmp_path / "disk"
    at.mkdir()
    mount = f"mount -t tmpfs -o size={Disk.SIZE} tmpfs {at} && echo mounted && exec cat"
    try:
        holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        pytest.skip(f"no small file system can be mounted: {error}")
    with holder:
        assert holder.stdout is not None
        if (line := holder.stdout.readline()) != "mounted\n":
            pytest.skip(f"no small file system can be mounted: {line.strip()}")
        yield Disk(Path(f"/proc/{holder.pid}/root{at}"))


@dataclass(frozen=True)
class Writer:
    """Sends artifacts, and a text to be prefilled, each time the same."""

    url: str
    artifacts: dict[str, bytes]
    text: str

    def put(self) -> Counter[int]:
        """How often each status came."""
        items = self.artifacts.items()
        answers = [asked(self.url, "PUT", f"artifacts/{name}", content=data) for name, data in items]
        assert all("disk is full" in body["error"]["message"] for status, body in answers if status >= 400)
        return Counter(status for status, _ in answers)

    def make(self) -> tuple[int, Any]:
        body = {"model": "served", "contents": [{"parts": [{"text": self.text}]}]}
        return asked(self.url, "POST", "cachedContents", json=body)

    def made(self) -> Any:
        """Once it is prefilled, or has failed."""
        status, content = self.make()
        assert status == 200, content
        until = time.monotonic() + 60
        while content["state"] == "PROCESSING":
            assert time.monotonic() < until, content
            time.sleep(0.05)
            _, content = asked(self.url, "GET", content["name"])
        return content


@pytest.fixture
def writer(served: kvtool.Model, tmp_path: Path) -> Callable[[str], Writer]:
    """Of seven artifacts that the server has not, and a text whose artifact is as large."""
    text = "All that is kept here takes room, and there is little of it. " * 20
    others = LocalStore(tmp_path / "others")
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(f"{number}. {text}")
    kvtool.prefill(sorted(tmp_path.glob("?.txt")), model=served, store=others)
    large = [others[name].segments[0].variants["raw"] for name in others]
    artifacts = {variant.artifact: others.path_of(variant).read_bytes() for variant in large}
    return lambda url: Writer(url, artifacts, text)


def test_a_full_disk(
    running: Any,
    expected: dict[tuple[str, str], str],
    documents: LocalStore,
    writer: Callable[[str], Writer],
    disk: Disk,
) -> None:
    store = LocalStore(shutil.copytree(documents.root, disk.root / "store"))
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    with running("--store", str(store.root)) as server, load(server.url, expected) as seen:
        sent = writer(server.url)
        nbytes = max(len(data) for data in sent.artifacts.values())

        disk.fill(but=3 * nbytes + nbytes // 2)
        assert sent.put() == {201: 3, 507: 4}
        failed = sent.made()
        assert failed["state"] == "FAILED"
        assert "disk is full" in failed["error"]["message"]
        # There is room for the record now, but none for another one that says that it has failed.
        disk.fill(but=os.statvfs(disk.root).f_frsize)
        assert sent.made()["state"] == "FAILED"
        assert sent.make()[0] == 507
        assert sent.put() == {507: 7}
        status, body = asked(server.url, "PATCH", failed["name"], json={"ttl": "60s"})
        assert status == 507
        assert "disk is full" in body["error"]["message"]
        for content in asked(server.url, "GET", "cachedContents")[1]["cachedContents"]:
            assert content["state"] == "FAILED"
            assert asked(server.url, "DELETE", content["name"])[0] == 200
        assert asked(server.url, "GET", "cachedContents")[1] == {"cachedContents": []}

        for name in documents:
            seen.wait(name)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'path="/v1/artifacts/{digest}",status="507"} 11.0' in metrics
        disk.empty()
        assert sent.put() == {200: 3, 201: 4}
        assert sent.made()["state"] == "ACTIVE"
    assert not seen.wrong
    assert not seen.refused
    assert not [line for line in server.log if "Traceback" in line]
    assert {path: path.read_bytes() for path in before} == before
    assert not list(store.root.rglob(".tmp-*"))
    for path in store.root.rglob("*.safetensors"):
        Artifact.open(path, expected=path.stem).verify()
    assert CliRunner().invoke(commands, ["verify", "--store", str(store.root)]).exit_code == 0
