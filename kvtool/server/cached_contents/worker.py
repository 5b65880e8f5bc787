"""Cached contents are prefilled in the background, a pass at a time between those of the answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from kvtool.engines.capabilities import rope_description
from kvtool.errors import UsageError
from kvtool.model.chat_template import prefix_of
from kvtool.model.model import Model
from kvtool.prefilling.prefill import prefill_text
from kvtool.prefilling.report import Report
from kvtool.server.cached_contents.store import Contents, Record
from kvtool.server.http.errors import ApiError, api_error
from kvtool.server.runtime.cache_memory import Busy, Memory
from kvtool.server.runtime.scheduler import Scheduler

STEP_TOKENS = 128
"""Tokens of one pass, for whose time nobody gets an answer's next token. Fewer would take hardly less."""

SWEEP_SECONDS = 30.0
"""How long what has expired may lie about."""

_log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """The server stops, or nobody wants it any more."""


class Filling:
    """One tenant's: what one tenant has waiting does not keep another's waiting."""

    def __init__(
        self, contents: Contents, model: Model, scheduler: Scheduler, memory: Memory, token_bytes: int
    ) -> None:
        self.contents, self.model, self.scheduler = contents, model, scheduler
        self.memory, self.token_bytes = memory, token_bytes
        self._thread = threading.Thread(target=self._run, name="filling", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the pass that runs; what is not done goes on when a server is started again."""
        self._stopping.set()
        self.contents.changed.set()
        self._thread.join()

    def _run(self) -> None:
        changed = self.contents.changed
        while not self._stopping.is_set():
            try:
                self.contents.sweep()
                for record in [each for each in self.contents if each.state == "PROCESSING"]:
                    self._fill(record)
                    self.contents.sweep()
            except Exception:
                _log.exception("cached contents could not be kept; they are tried again")
            changed.wait(SWEEP_SECONDS)
            # Whatever was set by now is seen in the next round, and stopping was before.
            changed.clear()

    def _fill(self, record: Record) -> None:
        try:
            self._prefill(record)
            state, why = "ACTIVE", None
        except _Abandoned:
            return
        except Exception as error:
            _log.exception("%s could not be prefilled", record.name)
            state, why = "FAILED", str(api_error(error))
        finally:
            self.contents.progress.pop(record.id, None)
        # Deleted meanwhile, it needs no state. If it cannot be written now, the next server finds it out again.
        with suppress(ApiError):
            self.contents.change(record.id, must_last=False, state=state, error=why, text=None)

    def _prefill(self, record: Record) -> None:
        self._go_on(record)
        if record.text is None or record.fingerprint != self.model.fingerprint:
            raise UsageError(
                record.name, f"{record.model} was to prefill it, and this server has {self.model.name}"
            )
        prefix = prefix_of(self.model, system=record.system)
        # Artifacts say it. It is found by running the model, which is for the model's own thread alone.
        self.scheduler.call(lambda: rope_description(self.model)).result()
        with ExitStack() as held:
            self._take_room(record, held)
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

    def _take_room(self, record: Record, held: ExitStack) -> None:
        # The prefix once for itself, and once before the text.
        nbytes = self.token_bytes * (2 * record.prefix_tokens + record.tokens)
        while True:
            try:
                held.enter_context(self.memory.reserved(nbytes, timeout=0.1))
                return
            except Busy:
                # Who asks for an answer comes first: nobody waits behind this for long.
                self._stopping.wait(1.0)
                self._go_on(record)

    def _pass(self, record: Record, forward: Callable[[], None]) -> None:
        self._go_on(record)
        started = time.monotonic()
        self.scheduler.call(forward).result()
        if self.scheduler.running:
            # Those who are being answered get at least as much of the model as what nobody is waiting for.
            self._stopping.wait(time.monotonic() - started)

    def _go_on(self, record: Record) -> None:
        if self._stopping.is_set() or not self.contents.get(record.id):
            raise _Abandoned

    def _progress(self, record: Record, report: Report) -> None:
        self.contents.progress[record.id] = report.tokens
