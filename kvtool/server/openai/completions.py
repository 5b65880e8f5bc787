"""The answers to all prompts of one request: some at a time, and numbered through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from kvtool import limits
from kvtool.server.http.errors import ApiError
from kvtool.server.http.logs import TOKEN_COUNTS, RequestLog
from kvtool.server.runtime.cache_memory import Busy
from kvtool.server.runtime.generation import AnsweredToken, Completion, Delta
from kvtool.server.runtime.request import Request
from kvtool.server.runtime.service import Service
from kvtool.server.runtime.tenant import Tenant


@dataclass
class Choice:
    """One answer, as far as it has come. ``sampled`` are its tokens, where log probabilities were asked for."""

    index: int
    text: str = ""
    sampled: list[AnsweredToken] = field(default_factory=list)
    finish: str | None = None


class Completions:
    """Answers to ``requests``, which differ in their prompts alone.

    Call ``start``, then ``deltas`` or ``whole``, and ``close`` in any case. The choices of the first prompt come first, then
    those of the second. As many are generated at a time as a single prompt may have. ``started`` is as of ``Completion``.
    """

    def __init__(
        self,
        service: Service,
        tenant: Tenant,
        requests: Sequence[Request],
        started: float,
        log: RequestLog,
    ) -> None:
        self.log, self.created = log, int(time.time())
        self.parts = [Completion(service, tenant, request, started, log) for request in requests]
        self.n_choices = len(requests[0].samplings)
        self.has_logprobs = requests[0].samplings[0].logprobs is not None
        self._room = asyncio.Semaphore(limits.CHOICES // self.n_choices)
        self._starting = asyncio.Lock()
        self._answering = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def indices(self) -> range:
        return range(len(self.parts) * self.n_choices)

    @property
    def prompt_tokens(self) -> int:
        return self._sum("prompt_tokens")

    @property
    def cached_tokens(self) -> int:
        return self._sum("cached_tokens")

    @property
    def completion_tokens(self) -> int:
        return self._sum("completion_tokens")

    def _sum(self, name: str) -> int:
        return sum(getattr(part, name) for part in self.parts)

    async def start(self) -> None:
        """Plans all, so that a request that is refused takes no time of the model's, and starts the first."""
        scored = planned = 0
        for number, part in enumerate(self.parts):
            plan = await part.plan()
            scored += (len(plan.token_ids) - plan.document_tokens) * self.n_choices
            if part.request.is_scored and scored > limits.SCORED_TOKENS:
                size = f"more than {limits.SCORED_TOKENS:,} tokens, those of each choice counted"
                message = f"prompt: log probabilities of {size}, are too many for one request; send several"
                raise ApiError(400, message, param="prompt")
            # A plan has the tokens of the documents too: a thousand of them together may be larger than any cache.
            planned += len(plan.token_ids)
            if number and planned > limits.PLANNED_TOKENS:
                part.forget_plan()
        await self.parts[0].start()
        self._answering += 1

    async def deltas(self) -> AsyncIterator[Delta]:
        """Text as soon as it is certain. Raises what goes wrong with any of the prompts."""
        # Bounded, so that no further prompt is begun for a client that does not take the answers.
        events: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(limits.CHOICES)
        self._tasks = [asyncio.create_task(self._answer(number, events)) for number in range(len(self.parts))]
        running = len(self._tasks)
        while running:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield event

    async def _answer(self, number: int, events: asyncio.Queue[Delta | Exception | None]) -> None:
        """Puts the answers to one prompt, and at their end None or what went wrong."""
        part, end = self.parts[number], None
        try:
            async with self._room:
                if number:
                    await self._start(part)
                async for delta in part.deltas():
                    await events.put(replace(delta, index=number * self.n_choices + delta.index))
                await part.close()
                self._answering -= 1
        except Exception as error:
            end = error
        await events.put(end)

    async def _start(self, part: Completion) -> None:
        """Starts ``part``, once those before it leave room for it in the memory for caches.

        One at a time: of the threads that prepare requests, a list takes no more than a single prompt does.
        """
        async with self._starting:
            while True:
                others = self._answering
                try:
                    await part.start()
                    self._answering += 1
                    return
                except Busy:
                    # Those that were answered when it began to wait may have given back their room by now.
                    if not others:
                        raise

    async def whole(self) -> list[Choice]:
        """All answers, once they are finished. Raises as ``deltas`` does."""
        choices = [Choice(index) for index in self.indices]
        async for delta in self.deltas():
            choice = choices[delta.index]
            choice.text += delta.text
            choice.sampled += delta.sampled
            choice.finish = delta.finish
        return choices

    async def close(self) -> None:
        """Releases what the answers hold, and notes their tokens in ``log``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for part in self.parts:
            await part.close()
        if self.prompt_tokens:
            self.log.tokens = {name: self._sum(name) for name in TOKEN_COUNTS}
