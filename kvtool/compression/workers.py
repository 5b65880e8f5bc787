"""Segments → artifacts in the store, on all cores.

The first segment is encoded in this process. Its time says whether the others are worth more processes, each of which takes
seconds to start. A process has one thread and holds one artifact and one group of layers at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from functools import cache
from typing import Any, TypeAlias

# Unlike the standard library's, loky's processes do not run the caller's script again.
from loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from kvtool.codecs import CodecError, Pipeline
from kvtool.errors import KvtoolError, StoreError
from kvtool.kernels.threads import use_one_thread
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Variant
from kvtool.store.segments import SegmentRef, cannot_compress, encode_segment

WORTH_SECONDS = 15.0
"""Seconds of remaining work in one process, above which more processes are started."""

Outcome: TypeAlias = tuple[SegmentRef, Variant | KvtoolError]
"""A segment, with its artifact or with why there is none."""


def encode_all(store: LocalStore, refs: Sequence[SegmentRef], pipeline: Pipeline) -> Iterator[Outcome]:
    """Encodes the segments ``refs`` by a pipeline that needs no model, and yields each outcome as it is known."""
    started = time.monotonic()
    for done, ref in enumerate(refs):
        remaining = len(refs) - done
        if done and remaining > 1 and _cores() > 1:
            seconds = (time.monotonic() - started) / done * remaining
            if seconds > WORTH_SECONDS:
                yield from _encode_in_processes(store, refs[done:], pipeline)
                return
        yield ref, _encode(store, ref, pipeline)


def _encode_in_processes(
    store: LocalStore, refs: Sequence[SegmentRef], pipeline: Pipeline
) -> Iterator[Outcome]:
    executor = ProcessPoolExecutor(min(_cores(), len(refs)), initializer=use_one_thread)
    try:
        pending: dict[Future[Any], SegmentRef] = {
            executor.submit(_encode_in_process, str(store.root), ref, pipeline.to_config()): ref
            for ref in refs
        }
        for future in as_completed(pending):
            try:
                yield pending[future], future.result()
            except TerminatedWorkerError as error:
                reason = "a process that was compressing was killed, perhaps for want of memory"
                remedy = "what was finished is stored, and the same command goes on from there"
                raise StoreError(store.root, reason, remedy) from error
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _encode_in_process(root: str, ref: SegmentRef, config: Mapping[str, Any]) -> Variant | KvtoolError:
    store = _store(root)
    try:
        pipeline = Pipeline.from_config(config, store.calibrations)
    except CodecError as error:
        return cannot_compress(ref, error)
    except KvtoolError as error:
        return error
    return _encode(store, ref, pipeline)


@cache
def _store(root: str) -> LocalStore:
    """One store for all segments of a process, so that each calibration is read once."""
    return LocalStore(root)


def _encode(store: LocalStore, ref: SegmentRef, pipeline: Pipeline) -> Variant | KvtoolError:
    try:
        return encode_segment(store, ref, pipeline)
    except KvtoolError as error:
        return error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
