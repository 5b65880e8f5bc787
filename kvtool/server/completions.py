"""/v1/completions and /v1/chat/completions, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import ApiError, api_error, model_missing
from .logs import Note
from .requests import ChatRequest, CompletionRequest
from .sampling import Picked
from .scheduler import Generation
from .serving import Prompt, Serving, Tenant
from .text import TextStream

_TELLABLE = 1000

R = TypeVar("R", bound=BaseModel)


async def chat(request: Request) -> Response:
    return await _answer(request, ChatRequest, _Chat)


async def complete(request: Request) -> Response:
    return await _answer(request, CompletionRequest, _Text)


async def parsed(request: Request, kind: type[R]) -> R:
    """The body. Raises ``ApiError``, naming the field, for one that is not a ``kind``."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        # Each of them is an object: a body of a million wrong items would take gigabytes.
        if error.error_count() > _TELLABLE:
            raise ApiError(400, "almost nothing in this body is what it should be") from None
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper()) or None
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        # Not from it: pydantic's message repeats what was sent.
        raise ApiError(400, message, param=where) from None
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None


async def _answer(
    request: Request, kind: type[ChatRequest] | type[CompletionRequest], shape: type[_Shape]
) -> Response:
    serving: Serving = request.app.state.serving
    asked = await parsed(request, kind)
    started = time.monotonic()
    if asked.model != serving.model.name:
        raise model_missing(asked.model, serving.model.name)
    if serving.scheduler.running + serving.waiting >= serving.limits.concurrency:
        raise ApiError(429, "too many requests are being answered; try again later", Retry_After="1")
    answering = _Answering(serving, request.state.tenant, asked, started, request.state.note)
    serving.waiting += 1
    try:
        await answering.start()
    finally:
        serving.waiting -= 1
    shaped = shape(answering)
    if asked.stream:
        return _Stream(shaped)
    try:
        watching = asyncio.ensure_future(_gone(request))
        reading = asyncio.ensure_future(answering.whole())
        await asyncio.wait({watching, reading}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not reading.done():
            reading.cancel()
            return Response(status_code=499)
        choices = reading.result()
    finally:
        await answering.close()
    return JSONResponse(shaped.whole(choices))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass
class _Choice:
    """One answer, as far as it has come."""

    index: int
    text: str = ""
    picked: list[tuple[Picked, str]] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class _Delta:
    """What a choice has more now; with ``finish`` it is its last."""

    index: int
    text: str
    picked: list[tuple[Picked, str]]
    finish: str | None


class _Answering:
    """A request's generations, from its prompt to their last tokens."""

    def __init__(
        self,
        serving: Serving,
        tenant: Tenant,
        asked: ChatRequest | CompletionRequest,
        started: float,
        note: Note,
    ) -> None:
        self.serving, self.tenant, self.asked, self.started = serving, tenant, asked, started
        self.note = note
        self.created = int(time.time())
        self.tokens = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Picked | str | BaseException]] = asyncio.Queue()
        self._generations: list[Generation] = []
        self._running = 0
        self._held: AbstractContextManager[Prompt] = serving.prompt(asked, tenant)

    async def start(self) -> None:
        serving = self.serving
        entering = self._loop.run_in_executor(serving.preparing, self._held.__enter__)
        try:
            self.prompt = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The client is gone; what is held must still be given back once it is there.
            entering.add_done_callback(lambda done: done.exception() or self._held.__exit__(None, None, None))
            raise
        metrics = serving.metrics
        metrics.prompt_tokens.inc(len(self.prompt.token_ids))
        metrics.cached_tokens.inc(self.prompt.cached_tokens)
        most = serving.most(len(self.prompt.token_ids), self.asked)
        for index in range(self.asked.choices):
            generation = Generation(
                self.prompt.cache,
                self.prompt.token_ids[self.prompt.seen :],
                self.prompt.seen,
                most,
                self.asked.sampling(index),
                on_token=partial(self._push, index),
                on_end=partial(self._push, index),
            )
            self._generations.append(generation)
            self._running += 1
            serving.scheduler.submit(generation)

    def _push(self, index: int, event: Picked | str | BaseException) -> None:
        # The loop is gone only when the whole server is.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def deltas(self) -> AsyncIterator[_Delta]:
        """Text as it is certain. Raises what went wrong in the model's thread."""
        tokenizer = self.serving.model.tokenizer
        streams = [TextStream(tokenizer, self.asked.stops) for _ in self._generations]
        done = [False] * len(streams)
        untold: list[list[tuple[Picked, str]]] = [[] for _ in streams]
        while not all(done):
            index, event = await self._next()
            if done[index]:
                continue
            stream, told = streams[index], untold[index]
            finish = None
            if isinstance(event, Picked):
                if not self.tokens:
                    seconds = time.monotonic() - self.started
                    cached = "yes" if self.prompt.seen else "no"
                    self.serving.metrics.first_token.labels(cached).observe(seconds)
                    self.note.first_token = seconds
                self.tokens += 1
                text = stream.push(event.token)
                if event.logprob is not None:
                    told.append((event, tokenizer.decode([event.token])))
                if stream.stopped:
                    self._generations[index].cancel()
                    finish = "stop"
            elif isinstance(event, BaseException):
                raise event
            else:
                text, finish = stream.finish(), event
            done[index] = finish is not None
            if text or finish:
                untold[index] = []
                yield _Delta(index, text, told, finish)

    async def _next(self) -> tuple[int, Picked | str | BaseException]:
        index, event = await self._events.get()
        if not isinstance(event, Picked):
            self._running -= 1
        return index, event

    async def whole(self) -> list[_Choice]:
        choices = [_Choice(index) for index in range(self.asked.choices)]
        async for delta in self.deltas():
            choice = choices[delta.index]
            choice.text += delta.text
            choice.picked += delta.picked
            choice.finish = delta.finish
        return choices

    async def close(self) -> None:
        """Gives back what the request held, once the model's thread is done with it."""
        for generation in self._generations:
            generation.cancel()
        while self._running:
            await self._next()
        self._tell()
        self._held.__exit__(None, None, None)

    def _tell(self) -> None:
        metrics, note = self.serving.metrics, self.note
        seconds = time.monotonic() - self.started
        metrics.generation_tokens.inc(self.tokens)
        metrics.latency.observe(seconds)
        if note.first_token is not None and self.tokens > 1:
            metrics.output_token.observe((seconds - note.first_token) / (self.tokens - 1))
        note.tokens = {
            "prompt_tokens": len(self.prompt.token_ids),
            "cached_tokens": self.prompt.cached_tokens,
            "completion_tokens": self.tokens,
        }

    @property
    def usage(self) -> dict[str, Any]:
        prompt = len(self.prompt.token_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.prompt.cached_tokens},
        }


class _Shape:
    """An answer as one of the two APIs has it."""

    prefix: str
    object: str
    chunk: str

    def __init__(self, answering: _Answering) -> None:
        self.answering, self.id = answering, f"{self.prefix}-{uuid.uuid4().hex}"

    def head(self, kind: str) -> dict[str, Any]:
        model, created = self.answering.asked.model, self.answering.created
        return {"id": self.id, "object": kind, "created": created, "model": model}

    def whole(self, choices: Sequence[_Choice]) -> dict[str, Any]:
        return {
            **self.head(self.object),
            "choices": [self.choice(choice) for choice in choices],
            "usage": self.answering.usage,
        }

    def choice(self, choice: _Choice) -> dict[str, Any]:
        raise NotImplementedError

    def first(self) -> list[dict[str, Any]]:
        """Choices of the chunk that comes before any text, if there is one."""
        return []

    def delta(self, delta: _Delta) -> list[dict[str, Any]]:
        raise NotImplementedError


class _Chat(_Shape):
    prefix, object, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: _Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.picked),
            "finish_reason": choice.finish,
        }

    def first(self) -> list[dict[str, Any]]:
        return [
            {
                "index": n,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for n in range(self.answering.asked.choices)
        ]

    def delta(self, delta: _Delta) -> list[dict[str, Any]]:
        said = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta.picked),
            "finish_reason": None,
        }
        end = {"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish}
        return [said] * bool(delta.text or delta.picked) + [end] * bool(delta.finish)

    def _logprobs(self, picked: Sequence[tuple[Picked, str]]) -> dict[str, Any] | None:
        if not self.answering.asked.logprobs:
            return None
        tokenizer = self.answering.serving.model.tokenizer

        def told(text: str, logprob: float | None) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return {
            "content": [
                {
                    **told(text, one.logprob),
                    "top_logprobs": [told(tokenizer.decode([token]), value) for token, value in one.top],
                }
                for one, text in picked
            ],
            "refusal": None,
        }


class _Text(_Shape):
    prefix, object, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, choice: _Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.picked),
            "finish_reason": choice.finish,
        }

    def delta(self, delta: _Delta) -> list[dict[str, Any]]:
        return [
            {
                "index": delta.index,
                "text": delta.text,
                "logprobs": self._logprobs(delta.picked),
                "finish_reason": delta.finish,
            }
        ]

    def _logprobs(self, picked: Sequence[tuple[Picked, str]]) -> dict[str, Any] | None:
        if self.answering.asked.logprobs is None:
            return None
        tokenizer = self.answering.serving.model.tokenizer
        offsets, end = [], 0
        for _, text in picked:
            offsets.append(end)
            end += len(text)
        return {
            "tokens": [text for _, text in picked],
            "token_logprobs": [one.logprob for one, _ in picked],
            "top_logprobs": [
                {tokenizer.decode([token]): value for token, value in one.top} for one, _ in picked
            ],
            "text_offset": offsets,
        }


async def _events(shaped: _Shape) -> AsyncIterator[str]:
    """Server-sent events, the last of them [DONE]; what goes wrong on the way is an event too."""
    answering = shaped.answering
    usage = {"usage": None} if answering.asked.wants_usage else {}

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        body = {**shaped.head(shaped.chunk), "choices": choices, **usage, **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    try:
        if first := shaped.first():
            yield event(first)
        async for delta in answering.deltas():
            for choice in shaped.delta(delta):
                yield event([choice])
        if answering.asked.wants_usage:
            yield event([], usage=answering.usage)
        yield "data: [DONE]\n\n"
    except Exception as error:
        answering.note.error = error
        yield f"data: {json.dumps(api_error(error).body)}\n\n"


class _Stream(StreamingResponse):
    def __init__(self, shaped: _Shape) -> None:
        super().__init__(_events(shaped), media_type="text/event-stream")
        self.answering = shaped.answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here, since a generator that nobody began never ends; shielded, since who goes away cancels this.
            await asyncio.shield(self.answering.close())
