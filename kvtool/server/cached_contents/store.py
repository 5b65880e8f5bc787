"""The records of a tenant's cached contents: one small file each, beside the documents of the tenant's store."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from kvtool import limits
from kvtool.artifact.sealed import open_file
from kvtool.errors import ArtifactError, StoreError
from kvtool.model.model import Model
from kvtool.server.http.errors import ApiError
from kvtool.store.layout import CONTENTS
from kvtool.store.local import LocalStore
from kvtool.system import files

KIND = "cachedContents/"
"""The beginning of their names, here and as documents of the store."""

_ID = re.compile(r"[0-9a-f]{44}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One cached content. Times are seconds since 1970.

    Its ``tokens`` come after the ``prefix_tokens`` of ``system``. ``text`` is kept until it is prefilled, so that a server
    that was stopped meanwhile goes on with it when it is started again. ``error`` says why it has FAILED.
    """

    id: str
    display_name: str | None
    model: str
    fingerprint: str
    system: str | None
    prefix_tokens: int
    tokens: int
    created: float
    updated: float
    expires: float
    text: str | None
    state: Literal["PROCESSING", "ACTIVE", "FAILED"] = "PROCESSING"
    error: str | None = None

    @property
    def name(self) -> str:
        return KIND + self.id


_RECORD = TypeAdapter(Record)


def new_id() -> str:
    """An id. Ids sort by age, to the millisecond, and nobody can guess one."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(16)}"


class Contents:
    """A tenant's records. Safe to use from any thread. Expired ones are not seen, whether or not they are removed yet."""

    def __init__(self, store: LocalStore) -> None:
        self.store, self.directory = store, store.root / CONTENTS
        self.progress: dict[str, int] = {}
        """By id, the tokens done of contents that are being prefilled."""
        self.changed = threading.Event()
        """Set when there is something to prefill or to remove."""
        self._in_use: Counter[str] = Counter()
        self._unwritten: dict[str, Record] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Record]:
        """Oldest first."""
        for id in self._ids():
            if record := self.get(id):
                yield record

    def get(self, id: str) -> Record | None:
        record = self._read(id)
        return record if record and record.expires > time.time() else None

    def find(self, id: str) -> Record:
        """The record. Raises ``ApiError`` where it is missing."""
        record = self.get(id)
        if record is None:
            message = f"{KIND}{id}: there is no such cached content, or it has expired; GET /v1/cachedContents lists them"
            raise ApiError(404, message, code="cached_content_not_found")
        return record

    def add(self, record: Record) -> None:
        """Writes a new record. Raises ``ApiError`` if there are too many."""
        with self._lock:
            if sum(1 for _ in self) >= limits.CACHED_CONTENTS:
                reason = f"there are {limits.CACHED_CONTENTS:,} cached contents"
                raise ApiError(429, f"{reason}; delete some, or wait until they expire")
            self._write(record)
        self.changed.set()

    def change(self, id: str, *, must_last: bool = True, **changes: Any) -> Record:
        """Writes ``changes`` of a record. Raises ``ApiError`` where it is missing.

        Where the disk is full, a change that need not last is remembered for as long as the server runs; another raises
        ``DiskFull``.
        """
        with self._lock:
            record = replace(self.find(id), updated=time.time(), **changes)
            try:
                self._write(record)
            except files.DiskFull:
                if must_last:
                    raise
                self._unwritten[id] = record
        return record

    def delete(self, id: str) -> None:
        """Lets it expire now. Raises ``ApiError`` where it is missing."""
        # Otherwise it would take room to make room.
        self.change(id, must_last=False, expires=0.0)
        self.changed.set()

    @contextmanager
    def using(self, name: str, model: Model) -> Iterator[str]:
        """The document's name. It is not removed within the context, even if it expires.

        Raises ``ApiError`` where it is missing, not prefilled yet, or made for another model.
        """
        id = name.removeprefix(KIND)
        with self._lock:
            record = self.find(id)
            self._refuse_unready(record, model)
            self._in_use[id] += 1
        try:
            yield record.name
        finally:
            with self._lock:
                self._in_use -= Counter([id])

    def sweep(self) -> None:
        """Removes what has expired, unless it is in use or the store is being written to: then another time."""
        for id in self._ids():
            try:
                with self._lock:
                    record = self._read(id)
                    if record and record.expires <= time.time() and id not in self._in_use:
                        self._remove(record)
            except StoreError:
                _log.exception("%s%s cannot be removed", KIND, id)

    def _remove(self, record: Record) -> None:
        # The record last, so that an interrupted removal is done again.
        if self.store.purge(record.name):
            path = self._path(record.id)
            with files.as_store_errors(path):
                path.unlink()
            self._unwritten.pop(record.id, None)
            self.store.pins.discard(record.name)

    def _refuse_unready(self, record: Record, model: Model) -> None:
        name, field = record.name, "cached_content"
        if record.fingerprint != model.fingerprint:
            message = f"{name}: was made for {record.model}, this server has {model.name}; make it again"
            raise ApiError(400, message, param=field)
        if record.state == "FAILED":
            raise ApiError(400, f"{name}: has failed ({record.error}); make it again", param=field)
        if record.state == "PROCESSING":
            done = self.progress.get(record.id, 0)
            message = (
                f"{name}: is being prefilled, {done:,} of {record.tokens:,} tokens are done; try again later"
            )
            raise ApiError(409, message, param=field, code="cached_content_not_ready", Retry_After="1")

    def _ids(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def _path(self, id: str) -> Path:
        return self.directory / f"{id}.json"

    def _read(self, id: str) -> Record | None:
        if not _ID.fullmatch(id):
            return None
        if record := self._unwritten.get(id):
            return record
        try:
            with open_file(self._path(id)) as file:
                return _RECORD.validate_json(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ArtifactError) as error:
            # Not the error's own words: they may show what the file holds.
            _log.warning("%s: is not a record of cached contents (%s)", self._path(id), type(error).__name__)
            return None

    def _write(self, record: Record) -> None:
        with self.store.writing():
            # Of an encrypted store these are too, since they have the text until it is prefilled.
            chunks = self.store.sealing().stored([_RECORD.dump_json(record)], record.name)
            files.write_atomic(self._path(record.id), chunks)
        self._unwritten.pop(record.id, None)
