"""One load: a cache's layers, read and decoded by several threads, written into a request's blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from kvtool.artifact.read import Artifact
from kvtool.connectors.reading import Step, steps
from kvtool.connectors.vllm.layers import Layer
from kvtool.connectors.vllm.orders import LoadOrder
from kvtool.errors import KvtoolError, MismatchError
from kvtool.store.base import Store


@dataclass(frozen=True)
class Target:
    """What loads read from and write to. ``is_all``: this worker has all layers of the model."""

    store: Store
    layers: Mapping[int, Layer]
    dtype: torch.dtype
    rank: int = 0
    n_ranks: int = 1
    is_all: bool = True


class Load:
    """Carries out ``order``; ``notify`` is called once it is over.

    It is over when its last layer is written, when something failed, or when its time is up. From then on nothing is written.
    """

    def __init__(self, order: LoadOrder, max_seconds: float, notify: Callable[[], None]) -> None:
        self.order, self.notify = order, notify
        self.error: str | None = None
        self.nbytes, self.seconds = 0, 0.0
        self._began = time.monotonic()
        self._deadline = self._began + max_seconds
        self._max_seconds = max_seconds
        # Held while blocks are written to: an engine that was told that a load is over gives them to others.
        self._writing = threading.Lock()
        self._is_over = False
        self._steps_left = 0

    def start(self, target: Target, pool: Executor) -> None:
        pool.submit(self._run, lambda: self._open(target, pool))

    def is_over(self) -> bool:
        if not self._is_over and time.monotonic() > self._deadline:
            self.cancel(f"it was not loaded within {self._max_seconds:g} seconds")
        return self._is_over

    def cancel(self, reason: str) -> None:
        """Ends the load; a thread that still reads for it will write nothing."""
        with self._writing:
            self._end(reason)

    def _open(self, target: Target, pool: Executor) -> None:
        with target.store.using(self.order.found.document):
            parts = self.order.found.open(target.store)
        _refuse_other_layers(parts, target)
        pending = steps(parts, self.order.tokens)
        self._steps_left = len(pending)
        for step in pending:
            pool.submit(self._run, partial(self._carry_out, step, target))

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
            if self._steps_left == 0:
                self._end(None)

    def _run(self, work: Callable[[], None]) -> None:
        if self._is_over:
            return
        try:
            work()
        except KvtoolError as error:
            self.cancel(str(error))
        except Exception as error:
            # Whatever it is, the engine goes on, and prefills.
            self.cancel(f"{type(error).__name__}: {error}")

    def _end(self, error: str | None) -> None:
        if not self._is_over:
            self.error, self._is_over = error, True
            self.seconds = time.monotonic() - self._began
            self.notify()


def _refuse_other_layers(parts: list[Artifact], target: Target) -> None:
    n_layers, dtype, path = parts[0].n_layers, parts[0].contents.geometry.dtype, parts[0].path
    if unknown := [index for index in target.layers if index >= n_layers]:
        raise MismatchError(path, f"has {n_layers} layers, and the engine a layer {max(unknown)}")
    if target.is_all and len(target.layers) != n_layers:
        raise MismatchError(path, f"has {n_layers} layers, the engine {len(target.layers)}")
    if dtype != target.dtype:
        raise MismatchError(path, f"is of {dtype}, the engine computes in {target.dtype}")


@contextmanager
def _own_stream(target: Target) -> Iterator[None]:
    """On a GPU, a stream that the engine's computation does not wait for; waited for at its end."""
    device = next(iter(target.layers.values())).blocks.device
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
