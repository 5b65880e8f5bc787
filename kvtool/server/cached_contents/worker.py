"""Prefill of cached contents in the background, a pass at a time between those of the answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from kvtool.engines.capabilities import rope_description
from kvtool.errors import UsageError
from kvtool.prefilling.prefill import prefill_text
from kvtool.prefilling.prefix import prefix_for
from kvtool.prefilling.report import Report
from kvtool.server.cached_contents.store import Contents, Record
from kvtool.server.http.errors import ApiError
from kvtool.server.runtime.cache_memory import Busy
from kvtool.server.runtime.errors import api_error
from kvtool.server.runtime.service import Service
from kvtool.server.runtime.tenant import Tenant

STEP_TOKENS = 128
"""Tokens of one pass, during which no answer gets its next token. A pass of fewer would hardly be faster."""

SWEEP_SECONDS = 30.0
"""Seconds until expired contents are removed, at most."""

_log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """The server stops, or the content was deleted."""


class PrefillWorker:
    """One tenant's thread, so that no tenant's contents wait for another's."""

    def __init__(self, contents: Contents, service: Service, tenant: Tenant) -> None:
        self.contents, self.service, self.tenant = contents, service, tenant
        self.model, self.scheduler = service.model, service.scheduler
        self._thread = threading.Thread(target=self._run, name="prefill", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the pass that runs. What is not prefilled by then goes on when a server is started again."""
        self._stopping.set()
        self.contents.changed.set()
        self._thread.join()

    def _run(self) -> None:
        changed = self.contents.changed
        while not self._stopping.is_set():
            try:
                self.contents.sweep()
                for record in [each for each in self.contents if each.state == "PROCESSING"]:
                    self._finish(record)
                    self.contents.sweep()
            except Exception:
                _log.exception("cached contents could not be kept; they are tried again")
            changed.wait(SWEEP_SECONDS)
            # Whatever was set by now is seen in the next round; stopping is set before this event.
            changed.clear()

    def _finish(self, record: Record) -> None:
        try:
            self._prefill(record)
            state, reason = "ACTIVE", None
        except _Abandoned:
            return
        except Exception as error:
            _log.exception("%s could not be prefilled", record.name)
            state, reason = "FAILED", str(api_error(error))
        finally:
            self.contents.progress.pop(record.id, None)
        # A record that was deleted meanwhile needs no state. A state that cannot be written is found again by the next server.
        with suppress(ApiError):
            self.contents.change(record.id, must_last=False, state=state, error=reason, text=None)

    def _prefill(self, record: Record) -> None:
        self._check_wanted(record)
        if record.text is None or record.fingerprint != self.model.fingerprint:
            reason = f"{record.model} was to prefill it, and this server has {self.model.name}"
            raise UsageError(record.name, reason)
        prefix = prefix_for(self.contents.store, self.model, system=record.system)
        # Artifacts hold it. It is found by running the model, which only the model's thread does.
        self.scheduler.call(lambda: rope_description(self.model)).result()
        # Until they expire, whoever made them counts on them.
        self.contents.store.pins.add(record.name)
        nbytes = self.service.caches.token_bytes * (record.prefix_tokens + record.tokens)
        with ExitStack() as held:
            held.enter_context(self.tenant.admitted(nbytes))
            self._reserve(record, held)
            prefill_text(
                record.name,
                record.text,
                model=self.model,
                store=self.contents.store,
                prefix=prefix,
                step_tokens=STEP_TOKENS,
                on_progress=partial(self._progress, record),
                run=partial(self._pass, record),
            )

    def _reserve(self, record: Record, held: ExitStack) -> None:
        # The prefix once for itself, and once before the text.
        nbytes = self.service.caches.token_bytes * (2 * record.prefix_tokens + record.tokens)
        while True:
            try:
                held.enter_context(self.service.memory.reserved(nbytes, timeout=0.1))
                return
            except Busy:
                # Requests come first: none waits long because of this.
                self._stopping.wait(1.0)
                self._check_wanted(record)

    def _pass(self, record: Record, forward: Callable[[], None]) -> None:
        self._check_wanted(record)
        started = time.monotonic()
        self.scheduler.call(forward).result()
        if self.scheduler.running:
            # Answers get at least as much of the model's time as this.
            self._stopping.wait(time.monotonic() - started)

    def _check_wanted(self, record: Record) -> None:
        if self._stopping.is_set() or not self.contents.get(record.id):
            raise _Abandoned

    def _progress(self, record: Record, report: Report) -> None:
        self.contents.progress[record.id] = report.tokens
