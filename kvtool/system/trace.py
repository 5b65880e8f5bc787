"""A record of what was done when, and by which thread, in the format of Chrome's tracing and Perfetto."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtool.errors import StoreError


@dataclass(frozen=True)
class Span:
    """Something that was done, from ``start`` to ``stop``, in seconds of ``time.perf_counter``.

    ``kind`` is one of a few words.
    """

    kind: str
    name: str
    thread: str
    start: float
    stop: float


@dataclass
class Trace:
    """Spans from any thread, in the order in which they ended."""

    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, kind: str, name: str) -> Iterator[None]:
        """Adds a span of the context's duration."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, name, start)

    def add(self, kind: str, name: str, start: float) -> None:
        """Adds a span that began at ``start`` and ends now."""
        thread = threading.current_thread()
        lane = "model" if thread is threading.main_thread() else thread.name
        self.spans.append(Span(kind, name, lane, start, time.perf_counter()))

    def to_json(self) -> dict[str, Any]:
        """Chrome's trace events: times in microseconds from the first span on, a lane for each thread."""
        lanes = {name: n for n, name in enumerate(dict.fromkeys(span.thread for span in self.spans))}
        first = min((span.start for span in self.spans), default=0.0)
        names: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}
            for name, tid in lanes.items()
        ]
        spans: list[dict[str, Any]] = [
            {
                "ph": "X",
                "cat": span.kind,
                "name": f"{span.kind} {span.name}",
                "pid": 1,
                "tid": lanes[span.thread],
                "ts": round((span.start - first) * 1e6, 1),
                "dur": round((span.stop - span.start) * 1e6, 1),
            }
            for span in sorted(self.spans, key=lambda span: span.start)
        ]
        return {"traceEvents": names + spans, "displayTimeUnit": "ms"}

    def write(self, path: Path) -> None:
        """Raises ``StoreError`` if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.to_json()))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise StoreError(path, reason, "name another with --trace") from error
