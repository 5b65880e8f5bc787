"""An engine that records what it is asked, and answers as vLLM's completions do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from kvtool.server.openai.routes import client_gone

WORDS = ("Seven", " ships", "é.")


class FakeEngine:
    """``requests`` are what it was asked, ``open`` the streams that are not at their end. ``paused`` ones wait for ``go``."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.open, self.ended = 0, 0
        self.paused = False
        self.broken: bytes | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/chat/completions", self.other, methods=["POST"]),
                Route("/v1/models", self.other),
                Route("/metrics", self.metrics),
                Route("/echo/{path:path}", self.echo, methods=["GET", "DELETE"]),
            ]
        )

    async def note(self, request: Request) -> Any:
        data = await request.body()
        self.requests.append(
            {
                "method": request.method,
                "path": request.url.path,
                "raw_path": request.scope["raw_path"],
                "query": request.url.query,
                "headers": dict(request.headers),
                "data": data,
                "body": json.loads(data) if data else None,
            }
        )
        return self.requests[-1]["body"]

    async def other(self, request: Request) -> Response:
        await self.note(request)
        return JSONResponse({"path": request.url.path}, headers={"x-engine": "yes"})

    async def echo(self, request: Request) -> Response:
        """Sets the cookie that is asked for, and names a header of its own as one of this connection."""
        await self.note(request)
        headers = {"x-engine": "yes", "set-cookie": request.headers.get("x-cookie", "none")}
        named = request.headers.get("x-connection")
        return Response("", headers=headers | ({"connection": named, named: "1"} if named else {}))

    async def metrics(self, request: Request) -> Response:
        await self.note(request)
        return PlainTextResponse("vllm:num_requests_running 0\n")

    async def complete(self, request: Request) -> Response:
        body = await self.note(request)
        if body["model"] != "served":
            error = {"message": "no such model", "type": "NotFoundError", "param": None, "code": 404}
            return JSONResponse({"error": error}, 404)
        if self.broken is not None:
            return Response(self.broken, media_type="application/json")
        if self.paused and not body.get("stream"):
            self.open += 1
            await client_gone(request)
            self.open, self.ended = self.open - 1, self.ended + 1
        many = body["prompt"] and isinstance(body["prompt"][0], list)
        prompts = body["prompt"] if many else [body["prompt"]]
        n = len(prompts) * (body.get("n") or 1)
        head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": body["model"]}
        usage = {
            "prompt_tokens": sum(map(len, prompts)),
            "completion_tokens": n * len(WORDS),
            "total_tokens": sum(map(len, prompts)) + n * len(WORDS),
            "prompt_tokens_details": {"cached_tokens": 5},
        }
        if body.get("stream"):
            return StreamingResponse(self.stream(head, usage, n, body), media_type="text/event-stream")
        choices = [
            {
                "index": index,
                "text": "".join(WORDS),
                "logprobs": logprobs(WORDS, body.get("logprobs")),
                "finish_reason": "stop",
                "stop_reason": None,
                "prompt_logprobs": None,
            }
            for index in range(n)
        ]
        return JSONResponse({**head, "choices": choices, "usage": usage, "kv_transfer_params": None})

    async def stream(
        self, head: dict[str, Any], usage: dict[str, Any], n: int, body: dict[str, Any]
    ) -> AsyncIterator[str]:
        self.open += 1
        try:
            for number, word in enumerate(WORDS):
                for index in range(n):
                    is_last = number == len(WORDS) - 1
                    choice = {
                        "index": index,
                        "text": word,
                        "logprobs": logprobs([word], body.get("logprobs")),
                        "finish_reason": "stop" if is_last else None,
                        "stop_reason": None,
                    }
                    yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
                while self.paused:
                    await asyncio.sleep(0.01)
                if self.broken is not None:
                    yield self.broken.decode()
                    return
            if (body.get("stream_options") or {}).get("include_usage"):
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.open -= 1
            self.ended += 1


def logprobs(words: Any, most: int | None) -> dict[str, Any] | None:
    """As vLLM has them: the chosen token first, then the ``most`` likeliest."""
    if most is None:
        return None
    likeliest = {" a": -0.5, " the": -1.5, " an": -2.5}
    return {
        "text_offset": [0 for _ in words],
        "tokens": list(words),
        "token_logprobs": [-1.0 for _ in words],
        "top_logprobs": [{word: -1.0, **dict(list(likeliest.items())[:most])} for word in words],
    }
