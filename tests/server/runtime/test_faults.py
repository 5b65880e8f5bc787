"""What goes wrong while others are being answered: nobody else notices, and nothing that was committed is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.read import Artifact
from kvtool.ask import ask
from kvtool.cli import app as commands
from kvtool.store.local import LocalStore

pytestmark = pytest.mark.slow

QUESTIONS = ("How many ships?", "What is kept?")
CLIENTS = 8
TOKENS = 10


@dataclass
class Seen:
    """Answers, by document: how many were right, which were wrong, and which were refused with what."""

    right: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    refused: list[tuple[str, int, Any]] = field(default_factory=list)

    def wait(self, name: str, more: int = 3) -> None:
        """Until ``more`` further answers over a document were right."""
        goal, until = self.right.get(name, 0) + more, time.monotonic() + 30
        while self.right.get(name, 0) < goal:
            assert time.monotonic() < until, f"nobody is answered over {name}: {self}"
            time.sleep(0.01)


def body(name: str, question: str, **more: Any) -> bytes:
    given = {"model": "served", "messages": [{"role": "user", "content": question}], "documents": [name]}
    return json.dumps({**given, "max_tokens": TOKENS, "temperature": 0, **more}).encode()


def post(url: str, data: bytes, timeout: float = 30) -> Any:
    return urllib.request.urlopen(f"{url}/v1/chat/completions", data=data, timeout=timeout)


def streamed(lines: Any) -> str:
    """The text of an answer's events, which must end as they should."""
    said = [line.decode().removeprefix("data: ").strip() for line in lines if line.strip()]
    assert said.pop() == "[DONE]", said
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in said)


@contextmanager
def load(url: str, expected: dict[tuple[str, str], str]) -> Iterator[Seen]:
    """Clients that ask all the time, each answer compared to the one that is given alone."""
    seen, done = Seen(), threading.Event()

    def client(number: int) -> None:
        turn = number
        while not done.is_set():
            (name, question), right = list(expected.items())[turn % len(expected)]
            turn += 1
            try:
                with post(url, body(name, question, stream=bool(turn % 2))) as answer:
                    text = (
                        streamed(answer)
                        if turn % 2
                        else json.load(answer)["choices"][0]["message"]["content"]
                    )
            except urllib.error.HTTPError as error:
                seen.refused.append((name, error.code, json.load(error)))
            else:
                if text == right:
                    seen.right[name] = seen.right.get(name, 0) + 1
                else:
                    seen.wrong.append(f"{name}: {text!r}, alone {right!r}")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        yield seen
    finally:
        done.set()
        for one in clients:
            one.join()


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
            answer = post(server.url, body("docs/a.txt", "Tell me everything.", max_tokens=1000, stream=True))
            answer.read(1)
            answer.close()
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
    assert all("cannot be used" in told["error"]["message"] for _, _, told in seen.refused)
    assert not any(str(Path.cwd()) in str(told) for _, _, told in seen.refused)


def unanswered(url: str, data: bytes) -> None:
    with suppress(OSError):
        post(url, data)
        raise AssertionError("it was answered")


def test_killed_and_started_again(
    running: Any, expected: dict[tuple[str, str], str], documents: LocalStore
) -> None:
    before = {path: path.read_bytes() for path in documents.root.rglob("*.safetensors")}
    with running() as server:
        asking = threading.Thread(target=unanswered, args=[server.url, body("docs/a.txt", "?" * 400)])
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
        if (said := holder.stdout.readline()) != "mounted\n":
            pytest.skip(f"no small file system can be mounted: {said.strip()}")
        yield Disk(Path(f"/proc/{holder.pid}/root{at}"))


def asked(url: str, method: str, path: str, data: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/v1/{path}", method=method, data=data)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@dataclass(frozen=True)
class Writer:
    """Sends artifacts, and a text to be prefilled, each time the same."""

    url: str
    artifacts: dict[str, bytes]
    text: str

    def put(self) -> Counter[int]:
        """How often each status came."""
        sent = [asked(self.url, "PUT", f"artifacts/{name}", data) for name, data in self.artifacts.items()]
        assert all("disk is full" in told["error"]["message"] for status, told in sent if status >= 400)
        return Counter(status for status, _ in sent)

    def make(self) -> tuple[int, Any]:
        body = {"model": "served", "contents": [{"parts": [{"text": self.text}]}]}
        return asked(self.url, "POST", "cachedContents", json.dumps(body).encode())

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
        status, told = asked(server.url, "PATCH", failed["name"], b'{"ttl": "60s"}')
        assert status == 507
        assert "disk is full" in told["error"]["message"]
        for content in asked(server.url, "GET", "cachedContents")[1]["cachedContents"]:
            assert content["state"] == "FAILED"
            assert asked(server.url, "DELETE", content["name"])[0] == 200
        assert asked(server.url, "GET", "cachedContents")[1] == {"cachedContents": []}

        for name in documents:
            seen.wait(name)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            assert 'path="/v1/artifacts/{digest}",status="507"} 11.0' in answer.read().decode()
        disk.empty()
        assert sent.put() == {200: 3, 201: 4}
        assert sent.made()["state"] == "ACTIVE"
    assert not seen.wrong
    assert not seen.refused
    assert not [line for line in server.said if "Traceback" in line]
    assert {path: path.read_bytes() for path in before} == before
    assert not list(store.root.rglob(".tmp-*"))
    for path in store.root.rglob("*.safetensors"):
        Artifact.open(path, expected=path.stem).verify()
    assert CliRunner().invoke(commands, ["verify", "--store", str(store.root)]).exit_code == 0
