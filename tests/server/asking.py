"""Chat requests, and the parts of their answers that tests look at."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
from starlette.testclient import TestClient

from kvtool.server.runtime.service import Limits

LIMITS = Limits(memory=1 << 28)

QUESTION = "How many ships are there?"

THREE = ["docs/a.txt", "docs/b.txt", "docs/c.txt"]
"""The names of all documents."""


def chat_body(content: str = QUESTION, **more: Any) -> dict[str, Any]:
    """A request's body."""
    messages = [{"role": "user", "content": content}]
    return {"model": "served", "messages": messages, "temperature": 0, "max_tokens": 12, **more}


def post_chat(
    client: httpx.Client, content: str = QUESTION, *, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    return client.post("/v1/chat/completions", json=chat_body(content, **more), headers=headers)


async def post_and_leave(client: TestClient, path: str, body: Any, *, takes_headers: bool = False) -> None:
    """Posts ``body`` as a client that is gone before the answer, or before any of its body if it ``takes_headers``."""
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        if message.get("body") or not takes_headers:
            raise OSError

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    with suppress(Exception):
        await client.app(scope | {"app": client.app}, receive, send)


def chat(client: httpx.Client, content: str = QUESTION, status: int = 200, **more: Any) -> Any:
    answer = post_chat(client, content, **more)
    assert answer.status_code == status, answer.text
    return answer.json()


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def cached_tokens(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
