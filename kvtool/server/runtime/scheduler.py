"""The model's own thread: requests join and leave between its passes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from kvtool.engines.batching.generate_many import end_tokens
from kvtool.engines.batching.multi_cache import feed_batches, supports_multi_cache
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.cache import DocumentCache
from kvtool.model.model import Model
from kvtool.server.runtime.sampling import Picked, Sampler, Sampling

PASS_TOKENS = 512
"""Tokens of new prompts that are read in one pass: others wait for it with their next token."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Generation:
    """One answer on its way. ``prompt`` are the tokens behind the first ``seen`` of ``cache``.

    ``on_token`` is called in the model's thread with each token that is said; ``on_end`` once, with the reason ("stop",
    "length" or "cancelled"), or with what went wrong. ``cancel`` may be called from anywhere.
    """

    cache: DocumentCache
    prompt: Sequence[int]
    seen: int
    max_tokens: int
    sampling: Sampling
    on_token: Callable[[Picked], None]
    on_end: Callable[[str | BaseException], None]
    cancelled: bool = False
    said: int = 0
    read: int = 0
    next: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.sampling)

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def is_reading(self) -> bool:
        return self.read < len(self.prompt)


class _Group:
    """All generations behind one cache."""

    def __init__(self, model: Model, cache: DocumentCache) -> None:
        self.rows = SequenceBatch(model, cache)
        self.members: dict[int, Generation] = {}


class Scheduler:
    """Runs until ``stop``. Each round is one pass of the model for all, where it can be read together.

    ``on_read`` is told how many tokens a pass had, and its seconds.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._ends = end_tokens(model)
        self._is_together = supports_multi_cache(model)
        self._arrived: queue.SimpleQueue[Generation | Callable[[], None] | None] = queue.SimpleQueue()
        self._groups: dict[int, _Group] = {}
        self._waiting: deque[tuple[_Group, int]] = deque()
        self._numbers = iter(range(1 << 62))
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._is_stopping = False
        self.on_read: Callable[[int, float], None] = lambda tokens, seconds: None
        self._busy_since: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the answers that are on their way."""
        self._is_stopping = True
        self._arrived.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def round_seconds(self) -> float:
        """How long the present round has taken; 0 while there is nothing to do."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def unread(self) -> int:
        """Tokens of prompts that wait to be read."""
        return sum(
            len(member.prompt) - member.read
            for group in list(self._groups.values())
            for member in list(group.members.values())
        )

    @property
    def running(self) -> int:
        return sum(len(group.members) for group in list(self._groups.values()))

    def submit(self, generation: Generation) -> None:
        self._arrived.put(generation)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs ``function`` in the model's thread, between passes."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._arrived.put(run)
        return future

    @torch.no_grad()
    def _run(self) -> None:
        while self._take() or self._groups or not self._is_stopping:
            try:
                self._leave_cancelled()
                self._round()
            except Exception as error:
                # Were the thread to end here, everyone would wait for it for ever.
                _log.exception("a round of the model's thread failed")
                self._fail(list(self._groups.values()), error)

    def _fail(self, groups: Iterable[_Group], error: Exception) -> None:
        """Ends all behind these caches, which others go on to use: nothing of theirs may stay in them."""
        for group in groups:
            group.rows.close()
            for number in list(group.members):
                self._end(group, number, error)

    def _take(self) -> bool:
        """What has arrived; waits for it if there is nothing else to do."""
        taken = False
        while True:
            is_idle = not (taken or self._groups or self._is_stopping)
            self._busy_since = None if is_idle else time.monotonic()
            try:
                arrived = self._arrived.get(block=is_idle)
            except queue.Empty:
                return taken
            taken = True
            self._busy_since = time.monotonic()
            if isinstance(arrived, Generation):
                self._join(arrived)
            elif arrived is not None:
                arrived()

    def _join(self, generation: Generation) -> None:
        key = id(generation.cache)
        try:
            group = self._groups.get(key) or _Group(self.model, generation.cache)
        except Exception as error:
            generation.on_end(error)
            return
        self._groups[key] = group
        number = next(self._numbers)
        group.members[number] = generation
        group.rows.join(number, generation.seen)
        self._waiting.append((group, number))

    def _leave_cancelled(self) -> None:
        for group in list(self._groups.values()):
            for number, member in list(group.members.items()):
                if member.cancelled:
                    self._end(group, number, "cancelled")

    def _round(self) -> None:
        """One token for every answer, and some of the prompts that came first."""
        feeds: dict[_Group, list[tuple[int, list[int]]]] = {}
        for group in self._groups.values():
            if fed := [(number, member.next) for number, member in group.members.items() if member.next]:
                feeds[group] = fed
        left = PASS_TOKENS
        while left and self._waiting:
            group, number = self._waiting[0]
            if member := group.members.get(number):
                some = list(member.prompt[member.read : member.read + left])
                member.read += len(some)
                left -= len(some)
                feeds.setdefault(group, []).append((number, some))
            if member is None or not member.is_reading:
                self._waiting.popleft()
        apart = [group for group in feeds if not self._is_together or group.rows.cache.parallel]
        for groups in ([group for group in feeds if group not in apart], *([group] for group in apart)):
            if groups:
                self._feed({group: feeds[group] for group in groups})

    def _feed(self, feeds: dict[_Group, list[tuple[int, list[int]]]]) -> None:
        started = time.monotonic()
        try:
            found = feed_batches(self.model, [(group.rows, fed) for group, fed in feeds.items()])
            said = [logits.float().cpu() for logits in found]
        except Exception as error:
            # Who shares a pass shares its failure.
            _log.exception("a pass of the model failed")
            self._fail(feeds, error)
            return
        tokens = sum(len(ids) for fed in feeds.values() for _, ids in fed)
        self.on_read(tokens, time.monotonic() - started)
        for (group, fed), logits in zip(feeds.items(), said, strict=True):
            for (number, _), row in zip(fed, logits, strict=True):
                if not group.members[number].is_reading:
                    self._said(group, number, row)

    def _said(self, group: _Group, number: int, logits: torch.Tensor) -> None:
        member = group.members[number]
        picked = member.sampler.pick(logits)
        if picked.token in self._ends:
            self._end(group, number, "stop")
            return
        member.said += 1
        member.next = [picked.token]
        member.on_token(picked)
        if member.said >= member.max_tokens:
            self._end(group, number, "length")

    def _end(self, group: _Group, number: int, reason: str | BaseException) -> None:
        member = group.members.pop(number)
        try:
            group.rows.leave(number)
        finally:
            if not group.members:
                del self._groups[id(member.cache)]
                # Room for answers is theirs; the cache stays.
                member.cache.fit()
            member.on_end(reason)
