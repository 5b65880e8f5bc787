"""A real server process: the openai package, a client that goes away, and the ways it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from kvtool.server.http.server import listen
from kvtool.store.local import LocalStore
from tests.server.asking import chat, chat_body

MESSAGES: list[Any] = chat_body()["messages"]


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def wait_until_running(server: Any, count: int) -> None:
    """Waits until ``count`` answers are being generated."""
    for _ in range(200):
        if f"kvtool:num_requests_running {count}.0" in httpx.get(f"{server.url}/metrics").text:
            return
        time.sleep(0.05)
    raise AssertionError("".join(server.log))


@contextmanager
def asked_for_long(server: Any) -> Iterator[None]:
    """An answer is being generated that the server's end cuts off."""

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client, pytest.raises(httpx.TransportError):
            chat(client, max_tokens=2000)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until_running(server, 1)
    yield
    asking.join(10)


def test_no_answer_waits_for_its_headers_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_the_openai_package_needs_nothing_but_a_base_url(running: Any) -> None:
    with running() as server:
        client = connect(server.url)
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id) == model
        request: Any = {"model": model.id, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        request["extra_body"] = {"documents": ["docs/a.txt", "docs/b.txt"], "recompute": 0.5}
        create = client.chat.completions.create
        whole = create(**request, logprobs=True, top_logprobs=2)
        assert whole.usage.prompt_tokens_details.cached_tokens > 0
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        chunks = list(create(**request, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        text = client.completions.create(model=model.id, prompt="One two", max_tokens=4, n=2, seed=1)
        assert len({choice.text for choice in text.choices}) == 2
        with pytest.raises(openai.NotFoundError, match="no such document"):
            create(**request | {"extra_body": {"documents": ["x"]}})
        with pytest.raises(openai.BadRequestError) as refused:
            create(**request | {"max_tokens": 10_000})
        assert refused.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_curl(running: Any) -> None:
    with running() as server:
        body = '{"model": "served", "prompt": "One two", "max_tokens": 3, "stream": true, "temperature": 0}'
        command = ["curl", "-sN", f"{server.url}/v1/completions", "-d", body]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("data: {")
        assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_who_goes_away_is_forgotten(running: Any) -> None:
    with running() as server:
        body: Any = {"model": "served", "messages": MESSAGES, "extra_body": {"documents": ["docs/a.txt"]}}
        with connect(server.url).chat.completions.create(**body, max_tokens=1500, stream=True) as stream:
            next(iter(stream))
        wait_until_running(server, 0)


@pytest.mark.slow
def test_sigterm_finishes_what_runs(running: Any) -> None:
    with running() as server:
        body: Any = {"model": "served", "messages": MESSAGES, "max_tokens": 300, "temperature": 0, "seed": 1}
        chunks: list[Any] = []
        stream = connect(server.url).chat.completions.create(**body, stream=True)
        asking = threading.Thread(target=chunks.extend, args=[stream])
        asking.start()
        while not chunks:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_the_second_signal_ends_it(running: Any) -> None:
    with running("--log", "json") as server, asked_for_long(server):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/readyz")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
    lines = [json.loads(line) for line in server.log[1:] if line.startswith("{")]
    assert {"/metrics"} == {line["path"] for line in lines if "path" in line}
    assert any("second signal" in line for line in server.log)


@pytest.mark.slow
def test_answers_have_so_long_to_finish(running: Any) -> None:
    # Some machines have given the whole answer after a second.
    with running("--drain", "0.1") as server, asked_for_long(server):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1


@pytest.mark.slow
def test_killed_it_starts_again_with_all_it_had(running: Any, documents: LocalStore) -> None:
    before = {name: documents.read(name).token_ids.tolist() for name in documents}
    answers = []
    for _ in range(2):
        with running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
            answers.append(chat(client, documents=["docs/a.txt"])["choices"])
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)
    assert answers[0] == answers[1]
    assert {name: documents.read(name).token_ids.tolist() for name in documents} == before
