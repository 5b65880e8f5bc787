"""One request's answers, from its prompt to their last tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kvtool.server.http.logs import Note
from kvtool.server.openai.detokenize import TextStream
from kvtool.server.openai.schemas import Asked
from kvtool.server.runtime.request_plan import Prompt
from kvtool.server.runtime.sampling import Picked
from kvtool.server.runtime.scheduler import Generation
from kvtool.server.runtime.service import Serving
from kvtool.server.runtime.tenant import Tenant


@dataclass
class Choice:
    """One answer, as far as it has come."""

    index: int
    text: str = ""
    picked: list[tuple[Picked, str]] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class Delta:
    """What a choice has more now; with ``finish`` it is its last."""

    index: int
    text: str
    picked: list[tuple[Picked, str]]
    finish: str | None


class Answering:
    """A request's generations, from its prompt to their last tokens."""

    def __init__(
        self,
        serving: Serving,
        tenant: Tenant,
        asked: Asked,
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
        self._held: AbstractContextManager[Prompt] = serving.prompting.prompt(asked, tenant)

    async def start(self) -> None:
        serving = self.serving
        entering = self._loop.run_in_executor(serving.preparing, self._held.__enter__)
        try:
            prompt = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The client is gone; what is held must still be given back once it is there.
            entering.add_done_callback(lambda done: done.exception() or self._held.__exit__(None, None, None))
            raise
        self.prompt_tokens, self.cached_tokens = len(prompt.token_ids), prompt.cached_tokens
        self._is_cached = prompt.seen > 0
        metrics = serving.metrics
        metrics.prompt_tokens.inc(self.prompt_tokens)
        metrics.cached_tokens.inc(self.cached_tokens)
        most = serving.prompting.most(self.prompt_tokens, self.asked)
        for index in range(self.asked.choices):
            generation = Generation(
                prompt.cache,
                prompt.token_ids[prompt.seen :],
                prompt.seen,
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

    async def deltas(self) -> AsyncIterator[Delta]:
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
                    cached = "yes" if self._is_cached else "no"
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
                text = stream.finish()
                finish = "stop" if stream.stopped else event
            done[index] = finish is not None
            if text or finish:
                untold[index] = []
                yield Delta(index, text, told, finish)

    async def _next(self) -> tuple[int, Picked | str | BaseException]:
        index, event = await self._events.get()
        if not isinstance(event, Picked):
            self._running -= 1
        return index, event

    async def whole(self) -> list[Choice]:
        choices = [Choice(index) for index in range(self.asked.choices)]
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
        # They know this object and the cache: within that circle the cache would outlive what is counted for it.
        self._generations.clear()
        self._held.__exit__(None, None, None)

    def _tell(self) -> None:
        metrics, note = self.serving.metrics, self.note
        seconds = time.monotonic() - self.started
        metrics.generation_tokens.inc(self.tokens)
        metrics.latency.observe(seconds)
        if note.first_token is not None and self.tokens > 1:
            metrics.output_token.observe((seconds - note.first_token) / (self.tokens - 1))
        note.tokens = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.tokens,
        }

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
