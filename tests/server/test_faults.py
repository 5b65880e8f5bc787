"""What goes wrong while others are being answered: nobody else notices, and nothing that was committed is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool.ask import ask

pytestmark = pytest.mark.slow

QUESTIONS = ("How many ships?", "What is kept?")
CLIENTS = 6
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
                with post(url, body(name, question)) as answer:
                    text = json.load(answer)["choices"][0]["message"]["content"]
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
def expected(documents: Store, served: kvtool.Model) -> dict[tuple[str, str], str]:
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
    running: Any, expected: dict[tuple[str, str], str], documents: Store
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
    running: Any, expected: dict[tuple[str, str], str], documents: Store
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
