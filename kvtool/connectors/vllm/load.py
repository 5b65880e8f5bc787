"""One load: a cache's layers, read and decoded by several threads, written into a request's blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from kvtool.artifact.read import Artifact
from kvtool.connectors.daemon_pool import DaemonPool
from kvtool.connectors.reading import Step, steps
from kvtool.connectors.vllm.layers import Layer
from kvtool.connectors.vllm.orders import LoadOrder
from kvtool.errors import MismatchError, described
from kvtool.store.base import Store

Submit: TypeAlias = Callable[[Callable[[], None]], "Future[Any]"]
"""Has a thread call something."""


@dataclass(frozen=True)
class Target:
    """What loads read from and write to. ``is_all``: this worker has all layers of the model; ``threads`` decode."""

    store: Store
    layers: Mapping[int, Layer]
    dtype: torch.dtype
    rank: int = 0
    n_ranks: int = 1
    is_all: bool = True
    threads: int = 1


class Load:
    """Carries out ``order``; ``notify`` is called once it is over.

    It is over when its last layer is written, when something failed, or when its time is up. From then on nothing is written.
    ``error`` then says what failed, and ``is_at_fault`` whether that was the cache.
    """

    def __init__(self, order: LoadOrder, max_seconds: float, notify: Callable[[], None]) -> None:
        self.order, self.notify = order, notify
        self.error: str | None = None
        self.is_at_fault = False
        self.nbytes, self.seconds = 0, 0.0
        self._max_seconds = max_seconds
        self._began = time.monotonic()
        self._deadline = self._began + max_seconds
        self._is_begun = False
        # Held while blocks are written to: an engine that was told that a load is over gives them to others. Nothing else is
        # waited for by whoever holds it.
        self._writing = threading.Lock()
        self._is_over = False
        self._steps_left = 0
        self._calls: list[Future[Any]] = []

    @property
    def is_over(self) -> bool:
        return self._is_over

    def start(self, target: Target, submit: Submit) -> None:
        self._calls.append(submit(partial(self._run, partial(self._open, target, submit))))

    def give_up(self, pool: DaemonPool) -> None:
        """Lets the pool replace the threads that this load holds. It is over."""
        for call in self._calls:
            pool.give_up(call)

    def expire(self) -> None:
        """Ends the load if its time is up."""
        if time.monotonic() <= self._deadline:
            return
        if self._is_begun:
            self.cancel(f"it was not loaded within {self._max_seconds:g} seconds", is_at_fault=True)
        else:
            self.cancel(f"other caches kept all threads for {self._max_seconds:g} seconds")

    def cancel(self, reason: str, *, is_at_fault: bool = False) -> None:
        """Ends the load; a thread that still reads for it will write nothing."""
        with self._writing:
            is_ended = self._end(reason, is_at_fault)
        if is_ended:
            self.notify()

    def _open(self, target: Target, submit: Submit) -> None:
        self._is_begun, self._deadline = True, time.monotonic() + self._max_seconds
        with target.store.using(self.order.found.document):
            parts = self.order.found.open(target.store)
        refuse_other_layers(parts, target)
        pending = steps(parts, self.order.tokens, target.threads)
        self._steps_left = len(pending)
        self._calls += [
            submit(partial(self._run, partial(self._carry_out, step, target))) for step in pending
        ]

    def _carry_out(self, step: Step, target: Target) -> None:
        spans = step.spans() if any(index in target.layers for index in step.layers) else []
        with self._writing:
            if self._is_over:
                return
            with _own_stream(target):
                for span in spans:
                    if layer := target.layers.get(span.layer):
                        blocks = self.order.block_ids[layer.group]
                        self.nbytes += layer.write(span, blocks, target.rank, target.n_ranks)
            self._steps_left -= 1
            is_ended = self._steps_left == 0 and self._end(None, False)
        if is_ended:
            self.notify()

    def _run(self, work: Callable[[], None]) -> None:
        if self._is_over:
            return
        try:
            work()
        except Exception as error:
            # Whatever it is, the engine goes on, and prefills.
            self.cancel(described(error), is_at_fault=True)

    def _end(self, error: str | None, is_at_fault: bool) -> bool:
        """Whether it was not over before."""
        if self._is_over:
            return False
        self.error, self.is_at_fault = error, is_at_fault
        self.seconds = time.monotonic() - self._began
        self._is_over = True
        return True


def refuse_other_layers(parts: Sequence[Artifact], target: Target) -> None:
    """Raises ``MismatchError`` for artifacts whose layers or dtype are not the engine's."""
    for part in parts:
        n_layers, dtype = part.n_layers, part.contents.geometry.dtype
        if unknown := [index for index in target.layers if index >= n_layers]:
            raise MismatchError(part.path, f"has {n_layers} layers, and the engine a layer {max(unknown)}")
        if target.is_all and len(target.layers) != n_layers:
            raise MismatchError(part.path, f"has {n_layers} layers, the engine {len(target.layers)}")
        if dtype != target.dtype:
            raise MismatchError(part.path, f"is of {dtype}, the engine computes in {target.dtype}")


@contextmanager
def _own_stream(target: Target) -> Iterator[None]:
    """On a GPU, a stream that the engine's computation does not wait for; waited for at its end, also after an error."""
    device = next(iter(target.layers.values())).blocks.device
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()
