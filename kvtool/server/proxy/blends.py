"""The stored blends of a store, by the documents that they are made of."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.blending.layout import Cached
from kvtool.blending.record import BlendRecord, record_of
from kvtool.errors import KvtoolError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.remote import RemoteStore

FRESH = 2.0
"""Seconds for which it is believed which blends there are."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Known:
    """A document that was looked at: when it had been committed, and its record if it is a blend."""

    committed: float
    record: BlendRecord | None


@dataclass(frozen=True, order=True)
class FoundBlend:
    """A blend by ``name``; ``identity`` is that of its one segment. They are ordered by the share that was recomputed."""

    recompute: float
    name: str
    identity: str


class Blends:
    """The blends of ``store``. It follows the store, ``FRESH`` seconds late, a remote one in the background."""

    def __init__(self, store: Store) -> None:
        self.store = headers_of(store)
        self.in_background = isinstance(store, RemoteStore)
        self._refreshing = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._refreshed = -math.inf

    def of(self, documents: Sequence[Cached], token_ids: Sequence[int]) -> FoundBlend | None:
        """The blend of exactly ``documents``, as they are now, that ``token_ids`` begin with.

        Of several, the one of which most was recomputed; where there is none, the first of ``documents`` if that is a blend.
        """
        self.follow()
        names = [
            name
            for name, known in list(self._known.items())
            if known.record and _is_of(known.record, documents)
        ]
        found = (self._usable(name, token_ids) for name in names)
        return max(filter(None, found), default=None) or self._usable(documents[0].name, token_ids)

    def follow(self) -> None:
        """Looks for what the store has gained or lost, or has that looked for in the background."""
        if time.monotonic() - self._refreshed < FRESH:
            return
        if not self.in_background:
            with self._refreshing:
                if time.monotonic() - self._refreshed >= FRESH:
                    self._refresh()
        elif self._refreshing.acquire(blocking=False):
            threading.Thread(target=self._refresh_and_release, name="blends").start()

    def _refresh_and_release(self) -> None:
        try:
            self._refresh()
        except KvtoolError as error:
            _log.warning("blends are looked up among those that are known so far: %s", error)
        finally:
            self._refreshing.release()

    def _refresh(self) -> None:
        names = set(self.store)
        for name in self._known.keys() - names:
            self._known.pop(name, None)
        for name in names:
            if not threading.main_thread().is_alive():
                return
            try:
                committed = self.store.committed(name)
                before = self._known.get(name)
                if before is None or before.committed != committed:
                    self._known[name] = _Known(committed, record_of(self.store, name))
            except (KvtoolError, OSError):
                # What is broken, or was removed just now, is not found.
                self._known.pop(name, None)
        self._refreshed = time.monotonic()

    def _usable(self, name: str, token_ids: Sequence[int]) -> FoundBlend | None:
        """The blend, if it is of the documents that the store has now, and its tokens begin the prompt."""
        try:
            document, record = self.store[name], record_of(self.store, name)
            if not document.is_blend or (record and record.outdated(self.store)):
                return None
            variant = next(iter(document.variants))
            ids = [token for part in self.store.parts(name, variant) for token in part.token_ids.tolist()]
        except (KvtoolError, StopIteration) as error:
            _log.warning("blend %s was not used: %s", name, error)
            return None
        if len(document.segments) > 1 or list(token_ids[: len(ids)]) != ids:
            return None
        return FoundBlend(record.recompute if record else 0.0, name, document.segments[0].identity)


def _is_of(record: BlendRecord, documents: Sequence[Cached]) -> bool:
    """Whether ``record`` has exactly ``documents``, whole, in this order; of the variant that is asked for by name."""
    if any(part.document is None or part.segment is not None for part in record.parts):
        return False
    if len(record.parts) != len(documents):
        return False
    return all(
        part.document == one.name and one.variant in (None, part.variant or record.variant)
        for part, one in zip(record.parts, documents, strict=True)
    )
