"""Raw segments → compressed artifacts in the store, on all cores.

The first segment is encoded here, and its time says whether the others are worth more processes: one takes seconds
to start. Each has one thread and holds one artifact and one group of layers at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from functools import cache
from typing import Any

from kvtool.artifact.write import compressed_content
from kvtool.codecs import CodecError, Inputs, Pipeline
from kvtool.errors import KvtoolError, StoreError
from kvtool.kernels.threads import use_one_thread
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW, Variant

WORTH_SECONDS = 15.0
"""Of work left for one process, from which on others are started."""


@dataclass(frozen=True)
class Task:
    """A segment of a document that is to be encoded, and the variant that it is encoded from."""

    document: str
    segment: int
    of: str = RAW


def encode_segment(
    store: LocalStore, task: Task, pipeline: Pipeline, inputs: Inputs | None = None
) -> Variant:
    """Encodes one segment into the store, behind the pipeline's calibrations.

    Raises KvtoolError, naming the document and the segment.
    """
    for calibration in pipeline.calibrations:
        store.put_calibration(calibration)
    original = store.open(task.document, task.of, task.segment)
    try:
        return store.put(compressed_content(original, pipeline, inputs))
    except CodecError as error:
        raise StoreError(task.document, f"segment {task.segment} cannot be compressed: {error}") from error


def encode_all(
    store: LocalStore, tasks: Sequence[Task], pipeline: Pipeline
) -> Iterator[tuple[Task, Variant | KvtoolError]]:
    """Encodes ``tasks``, and gives each with its artifact or with what went wrong, as it is done."""
    started = time.monotonic()
    for n, task in enumerate(tasks):
        left = len(tasks) - n
        if n and left > 1 and (time.monotonic() - started) / n * left > WORTH_SECONDS and _cores() > 1:
            yield from _encode_in_processes(store, tasks[n:], pipeline)
            return
        yield task, _outcome(store, task, pipeline)


def _encode_in_processes(
    store: LocalStore, tasks: Sequence[Task], pipeline: Pipeline
) -> Iterator[tuple[Task, Variant | KvtoolError]]:
    # Unlike the standard library's, its processes do not run the caller's script anew.
    from loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

    executor = ProcessPoolExecutor(min(_cores(), len(tasks)), initializer=use_one_thread)
    try:
        waiting: dict[Future[Any], Task] = {
            executor.submit(_in_process, str(store.root), task, pipeline.to_config()): task for task in tasks
        }
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except TerminatedWorkerError as error:
                raise StoreError(
                    store.root,
                    "a process that was compressing was killed, perhaps for want of memory",
                    "what was finished is stored, and the same command goes on from there",
                ) from error
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _in_process(root: str, task: Task, config: Mapping[str, Any]) -> Variant | KvtoolError:
    store = _store(root)
    try:
        pipeline = Pipeline.from_config(config, store.calibrations)
    except CodecError as error:
        return StoreError(task.document, f"segment {task.segment} cannot be compressed: {error}")
    except KvtoolError as error:
        return error
    return _outcome(store, task, pipeline)


@cache
def _store(root: str) -> LocalStore:
    """One for all of a process's segments, so that each calibration is read once."""
    return LocalStore(root)


def _outcome(store: LocalStore, task: Task, pipeline: Pipeline) -> Variant | KvtoolError:
    try:
        return encode_segment(store, task, pipeline)
    except KvtoolError as error:
        return error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
