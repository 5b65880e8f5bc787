"""The model's thread: answers join and leave between its passes."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch

from kvtool.engines.batching.multi_cache import feed_batches, supports_multi_cache
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.cache import DocumentCache
from kvtool.model.model import Model
from kvtool.server.runtime.sampling import SampledToken, Sampler, score

PASS_TOKENS = 512
"""Tokens of new prompts that are prefilled in one pass: other answers wait for it with their next token."""

SCORED_TOKENS = 128
"""Tokens of prompts that are scored in one pass: each has as many logits as there are tokens in the vocabulary."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Generation:
    """One answer being generated. ``prompt`` are the tokens after the first ``cached_tokens`` of ``cache``.

    ``on_token`` is called in the model's thread with each new token. ``on_end`` is called once, with the reason ("stop",
    "length" or "cancelled"), or with what went wrong. ``cancel`` may be called from any thread.

    Where ``on_scores`` is given, it is called with the log probabilities of ``prompt`` from ``scored_from`` on, piece by
    piece; the first token has none. After the answer it is called with the token that ended it, if one did.
    """

    cache: DocumentCache
    prompt: Sequence[int]
    cached_tokens: int
    max_tokens: int
    sampler: Sampler
    on_token: Callable[[SampledToken], None]
    on_end: Callable[[str | BaseException], None]
    on_scores: Callable[[list[SampledToken]], None] | None = None
    scored_from: int = 0
    cancelled: bool = False
    generated: int = 0
    prefilled: int = 0
    next_tokens: list[int] = field(default_factory=list)

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def is_prefilling(self) -> bool:
        return self.prefilled < len(self.prompt)

    @property
    def is_scored_next(self) -> bool:
        """Whether the prompt's next tokens are scored."""
        return self.on_scores is not None and self.prefilled >= self.scored_from

    def take_prompt(self, room: int) -> list[int]:
        """The next tokens to prefill, ``room`` at most: all of them are scored, or none."""
        start, end = self.prefilled, self.prefilled + room
        if self.on_scores and not self.is_scored_next:
            end = min(end, self.scored_from)
        tokens = list(self.prompt[start:end])
        self.prefilled += len(tokens)
        return tokens

    def score(self, tokens: int, logits: torch.Tensor) -> None:
        """Scores what follows each of the last ``tokens`` that were prefilled, by the ``logits`` [tokens, V] there."""
        assert self.on_scores is not None
        start, end = self.prefilled - tokens, self.prefilled
        following = self.prompt[start + 1 : end + 1]
        first = [SampledToken(self.prompt[start])] if start == self.scored_from else []
        top = self.sampler.sampling.logprobs or 0
        self.on_scores(first + score(logits[: len(following)], following, top))


class _Group:
    """All generations after one cache."""

    def __init__(self, model: Model, cache: DocumentCache) -> None:
        self.rows = SequenceBatch(model, cache)
        self.members: dict[int, Generation] = {}


_Feeds: TypeAlias = dict[_Group, list[tuple[int, list[int]]]]
"""A pass: for each cache the sequences after it, by number, with their next tokens."""


class Scheduler:
    """A thread that runs the model, from ``start`` to ``stop``.

    Each round is one pass for all answers, where the model can be fed together, or else one for each cache. ``on_pass`` is
    called after each with its tokens and its seconds.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.on_pass: Callable[[int, float], None] = lambda tokens, seconds: None
        self._is_fed_together = False
        self._arrived: queue.SimpleQueue[Generation | Callable[[], None] | None] = queue.SimpleQueue()
        self._groups: dict[int, _Group] = {}
        self._prefilling: deque[tuple[_Group, int]] = deque()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._is_stopping = False
        self._busy_since: float | None = None

    def warm_up(self) -> None:
        """Tries out whether the model can be fed together. Runs it, so that it is called before ``start``."""
        self._is_fed_together = supports_multi_cache(self.model)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits until all answers have ended."""
        self._is_stopping = True
        self._arrived.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def round_seconds(self) -> float:
        """Seconds since the present round began; 0 while there is nothing to do."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts that wait to be prefilled."""
        members = [member for group in list(self._groups.values()) for member in list(group.members.values())]
        return sum(len(member.prompt) - member.prefilled for member in members)

    @property
    def running(self) -> int:
        """Answers being generated."""
        return sum(len(group.members) for group in list(self._groups.values()))

    def submit(self, generation: Generation) -> None:
        self._arrived.put(generation)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs ``function`` in the model's thread, between passes of the model."""
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
        """Ends all answers after these caches, which others go on to use: nothing of theirs may stay in them."""
        for group in groups:
            group.rows.close()
            for number in list(group.members):
                self._end(group, number, error)

    def _take(self) -> bool:
        """Takes in what has arrived, and waits for it if there is nothing else to do. Returns whether anything arrived."""
        has_taken = False
        while True:
            is_idle = not (has_taken or self._groups or self._is_stopping)
            self._busy_since = None if is_idle else time.monotonic()
            try:
                arrived = self._arrived.get(block=is_idle)
            except queue.Empty:
                return has_taken
            has_taken = True
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
        group.rows.join(number, generation.cached_tokens)
        self._prefilling.append((group, number))

    def _leave_cancelled(self) -> None:
        for group in list(self._groups.values()):
            for number, member in list(group.members.items()):
                if member.cancelled:
                    self._end(group, number, "cancelled")

    def _round(self) -> None:
        """One token for every answer, and some of the prompts that came first."""
        feeds: _Feeds = {}
        for group in self._groups.values():
            if fed := [(n, member.next_tokens) for n, member in group.members.items() if member.next_tokens]:
                feeds[group] = fed
        scored = self._add_prompts(feeds)
        apart = [group for group in feeds if not self._is_fed_together or group.rows.cache.parallel]
        for groups in ([group for group in feeds if group not in apart], *([group] for group in apart)):
            if groups:
                self._feed({group: feeds[group] for group in groups}, scored)

    def _add_prompts(self, feeds: _Feeds) -> set[int]:
        """Adds prompts' tokens to ``feeds``: first those that came first, and others after what may be scored in one pass.

        Returns whose are scored.
        """
        room, scored_room, scored = PASS_TOKENS, SCORED_TOKENS, set[int]()
        unfinished: list[tuple[_Group, int]] = []
        while self._prefilling and room:
            group, number = self._prefilling.popleft()
            if (member := group.members.get(number)) is None:
                continue
            is_scored = member.is_scored_next
            if tokens := member.take_prompt(min(room, scored_room) if is_scored else room):
                room -= len(tokens)
                if is_scored:
                    scored_room -= len(tokens)
                    scored.add(number)
                feeds.setdefault(group, []).append((number, tokens))
            if member.is_prefilling:
                unfinished.append((group, number))
        self._prefilling.extendleft(reversed(unfinished))
        return scored

    def _feed(self, feeds: _Feeds, scored: Collection[int]) -> None:
        started = time.monotonic()
        try:
            batches = [(group.rows, fed) for group, fed in feeds.items()]
            logits = feed_batches(self.model, batches, scored)
            sizes = [[len(ids) if number in scored else 1 for number, ids in fed] for _, fed in batches]
            rows = [torch.split(each, size) for each, size in zip(logits, sizes, strict=True)]
            last = [_last_rows(each, size) for each, size in zip(logits, sizes, strict=True)]
        except Exception as error:
            # Answers that share a pass share its failure.
            _log.exception("a pass of the model failed")
            self._fail(feeds, error)
            return
        tokens = sum(len(ids) for fed in feeds.values() for _, ids in fed)
        self.on_pass(tokens, time.monotonic() - started)
        for (group, fed), every, ends in zip(feeds.items(), rows, last, strict=True):
            for (number, ids), row, end in zip(fed, every, ends, strict=True):
                member = group.members[number]
                if number in scored:
                    member.score(len(ids), row)
                if not member.is_prefilling:
                    self._sample(group, number, end)

    def _sample(self, group: _Group, number: int, logits: torch.Tensor) -> None:
        member = group.members[number]
        if not member.max_tokens:
            self._end(group, number, "length")
            return
        try:
            sampled = member.sampler.sample(logits)
        except Exception as error:
            # What one request asks of its sampling ends no other's answer.
            _log.exception("a token could not be chosen")
            self._end(group, number, error)
            return
        if sampled.token in member.sampler.ends:
            if member.on_scores:
                member.on_scores([sampled])
            self._end(group, number, "stop")
            return
        member.generated += 1
        member.next_tokens = [sampled.token]
        member.on_token(sampled)
        if member.generated >= member.max_tokens:
            self._end(group, number, "length")

    def _end(self, group: _Group, number: int, reason: str | BaseException) -> None:
        member = group.members.pop(number)
        try:
            group.rows.leave(number)
        finally:
            if not group.members:
                del self._groups[id(member.cache)]
                # The answers' room goes with them; the cache stays.
                member.cache.fit()
            member.on_end(reason)


def _last_rows(logits: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The last of each sequence's rows, of which there are ``sizes``. Without scores these are all, and are not copied."""
    if len(logits) != len(sizes):
        logits = logits[torch.tensor(sizes).cumsum(0).to(logits.device) - 1]
    return logits.float().cpu()
