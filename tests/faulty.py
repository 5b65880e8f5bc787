"""A proxy that answers wrongly now and then: with an error of its own, or with half an answer and a closed connection."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx

Fault: TypeAlias = int | str | None
"""A status to answer, or "drop" to break off in the middle of an answer, or None."""


class Faulty:
    """An application that passes requests on to ``upstream``. ``faults`` says of each, by method and path, what goes wrong."""

    def __init__(self, upstream: str, faults: Callable[[str, str], Fault]) -> None:
        self.upstream, self.faults = upstream, faults
        self.done: list[Fault] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["raw_path"].decode() + ("?" + scope["query_string"].decode()).rstrip("?")
        fault = self.faults(scope["method"], path)
        self.done.append(fault)
        if isinstance(fault, int):
            await send(
                {"type": "http.response.start", "status": fault, "headers": [(b"content-length", b"0")]}
            )
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"expect")]
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.request(
                scope["method"], self.upstream + path, headers=headers, content=body
            )
        kept = [
            (name, value)
            for name, value in answer.headers.raw
            if name.lower()
            not in (b"transfer-encoding", b"connection", b"content-encoding", b"content-length")
        ]
        length = answer.headers.get("content-length", str(len(answer.content)))
        kept.append((b"content-length", length.encode()))
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        if fault == "drop" and answer.content:
            await send(
                {
                    "type": "http.response.body",
                    "body": answer.content[: len(answer.content) // 2],
                    "more_body": True,
                }
            )
            raise ConnectionError("dropped")
        await send({"type": "http.response.body", "body": answer.content})


def sometimes(fault: Fault, share: float = 0.25) -> Callable[[str, str], Fault]:
    """The fault for this share of requests, by chance: a repeated pattern could meet the same request each time."""
    drawn = random.Random(7)
    return lambda method, path: fault if drawn.random() < share else None


def once(fault: Fault, method: str = "", part: str = "") -> Callable[[str, str], Fault]:
    """The fault for the first request of each method and path: of this ``method``, and with ``part`` in its path."""
    seen: set[tuple[str, str]] = set()

    def faults(asked: str, path: str) -> Fault:
        if (asked, path) in seen or part not in path or method not in ("", asked):
            return None
        seen.add((asked, path))
        return fault

    return faults
