"""A real server process: the openai package, a client that goes away, and the ways it ends."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import urllib.request
from typing import Any

import openai
import pytest

QUESTION: list[Any] = [{"role": "user", "content": "How many ships are there?"}]


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_the_openai_package_needs_nothing_but_a_base_url(running: Any) -> None:
    with running() as server:
        client = connect(server.url)
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id) == model
        given: Any = {"model": model.id, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
        given["extra_body"] = {"documents": ["docs/a.txt", "docs/b.txt"], "recompute": 0.5}
        whole = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
        assert whole.usage.prompt_tokens_details.cached_tokens > 0
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        chunks = list(
            client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True})
        )
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            == whole.choices[0].message.content
        )
        assert chunks[-1].usage == whole.usage
        text = client.completions.create(model=model.id, prompt="One two", max_tokens=4, n=2, seed=1)
        assert len({choice.text for choice in text.choices}) == 2
        with pytest.raises(openai.NotFoundError, match="no such document"):
            client.chat.completions.create(**given | {"extra_body": {"documents": ["x"]}})
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**given | {"max_tokens": 10_000})
        assert refused.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_curl(running: Any) -> None:
    with running() as server:
        body = '{"model": "served", "prompt": "One two", "max_tokens": 3, "stream": true, "temperature": 0}'
        done = subprocess.run(
            ["curl", "-sN", f"{server.url}/v1/completions", "-d", body],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("data: {")
        assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_who_goes_away_is_forgotten(running: Any) -> None:
    with running() as server:
        client = connect(server.url)
        with client.chat.completions.create(
            model="served",
            messages=QUESTION,
            max_tokens=1500,
            stream=True,
            extra_body={"documents": ["docs/a.txt"]},
        ) as stream:
            next(iter(stream))
        for _ in range(100):
            if "kvtool:num_requests_running 0.0" in get(f"{server.url}/metrics"):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("it goes on")


@pytest.mark.slow
def test_sigterm_finishes_what_runs(running: Any) -> None:
    with running() as server:
        client = connect(server.url)
        said: list[Any] = []

        def ask() -> None:
            for chunk in client.chat.completions.create(
                model="served", messages=QUESTION, max_tokens=300, temperature=0, seed=1, stream=True
            ):
                said.append(chunk)

        asking = threading.Thread(target=ask)
        asking.start()
        while not said:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert said[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(30) == 0
