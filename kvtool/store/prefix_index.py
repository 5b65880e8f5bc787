"""An index of prefixes: which cached document a prompt begins with, over token ids."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from kvtool.errors import KvtoolError
from kvtool.model.chat_template import time_of
from kvtool.store.base import Store
from kvtool.store.catalog import remote as catalog
from kvtool.store.headers import segment_headers
from kvtool.store.manifest import RAW, Document, Segment, Variant
from kvtool.store.remote import RemoteStore

BLOCK = 16
"""Tokens that are looked up together; those after the last whole block are compared one by one."""

FRESH = 0.5
"""Seconds for which a list of manifests is believed."""

Choose: TypeAlias = Callable[[Document, Segment], str | None]
"""Names the variant of a segment that is found; None leaves the segment out."""

_log = logging.getLogger(__name__)


def raw_of(fingerprint: str) -> Choose:
    """Finds what is raw, and of the model with this fingerprint."""

    def choose(document: Document, segment: Segment) -> str | None:
        return RAW if document.model["fingerprint"] == fingerprint and RAW in segment.variants else None

    return choose


@dataclass(frozen=True)
class Match:
    """A segment whose cache in ``variant``, its prefix included, begins with the first ``tokens`` of a prompt.

    ``artifacts`` hold it, prefix first. ``segment_tokens`` are all that it has, ``prefix_tokens`` those of the prefix alone;
    ``identity`` is the segment's.
    """

    document: str
    segment: int
    variant: str
    artifacts: tuple[Variant, ...]
    tokens: int
    segment_tokens: int
    prefix_tokens: int
    identity: str

    @property
    def is_whole(self) -> bool:
        """Whether the prompt has all of the cache's tokens."""
        return self.tokens == self.segment_tokens

    @property
    def document_tokens(self) -> int:
        """Tokens of the document that the prompt has, prefix not counted."""
        return max(0, self.tokens - self.prefix_tokens)


@dataclass(frozen=True, eq=False)
class _Entry:
    document: str
    segment: int
    variant: str
    artifacts: tuple[Variant, ...]
    token_ids: NDArray[np.int64]
    prefix_tokens: int
    identity: str

    def match(self, tokens: int) -> Match:
        return Match(
            self.document,
            self.segment,
            self.variant,
            self.artifacts,
            tokens,
            len(self.token_ids),
            self.prefix_tokens,
            self.identity,
        )


class Followed(ABC):
    """What is known of each document of ``store``, kept in step with it.

    It is ``FRESH`` seconds late. A remote store is followed in the background, and so is any other with ``in_background``.
    """

    def __init__(self, store: Store, *, in_background: bool = False) -> None:
        self.store = store
        self.in_background = in_background or isinstance(store, RemoteStore)
        self._refreshing = threading.Lock()
        self._documents: dict[str, Document] = {}
        self._committed: dict[str, float] = {}
        self._refreshed = self._tried = -math.inf
        self._is_failing = False

    @abstractmethod
    def add(self, document: Document) -> None:
        """Takes in a document that is new or has changed. A ``KvtoolError`` leaves it out."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Leaves a document out that may have been added."""

    @property
    def is_complete(self) -> bool:
        """Whether all that the store holds has been looked at once."""
        return self._refreshed > -math.inf

    def follow(self) -> None:
        """Looks for what the store has gained or lost, or has that looked for in the background."""
        if not self.in_background:
            with self._refreshing:
                if self._is_older_than(FRESH):
                    self._refresh()
            return
        # Asking for every remote document may take minutes. Nobody waits for it.
        fresh = catalog.FRESH if isinstance(self.store, RemoteStore) else FRESH
        if self._is_older_than(fresh) and self._refreshing.acquire(blocking=False):
            threading.Thread(target=self._follow_in_background, name="prefixes", daemon=True).start()

    def look_through(self, seconds: float) -> None:
        """Looks through the store for the first time, for so long at most; goes on in the background."""
        until = time.monotonic() + seconds
        self.follow()
        while not self.is_complete and time.monotonic() < until:
            time.sleep(0.01)

    def _follow_in_background(self) -> None:
        try:
            self._refresh()
            self._is_failing = False
        except Exception as error:
            # Whatever it is, the next pass comes. It is said once, until a pass succeeds.
            if not self._is_failing:
                _log.warning("what a store holds is looked up in what is known so far: %s", error)
            self._is_failing = True
        finally:
            self._tried = time.monotonic()
            self._refreshing.release()

    def _is_older_than(self, seconds: float) -> bool:
        return time.monotonic() - max(self._refreshed, self._tried) >= seconds

    def _refresh(self) -> None:
        names = set(self.store)
        for name in self._documents.keys() - names:
            self._leave_out(name)
        for name in names:
            try:
                committed = self.store.committed(name)
                if self._committed.get(name) == committed:
                    continue
                document = self.store[name]
                if self._documents.get(name) != document:
                    self._leave_out(name)
                    self.add(document)
                    self._documents[name] = document
                self._committed[name] = committed
            except (KvtoolError, OSError):
                # A broken document is not found; the store's own commands say what is wrong with it.
                self._leave_out(name)
        self._refreshed = time.monotonic()

    def _leave_out(self, name: str) -> None:
        self._documents.pop(name, None)
        self._committed.pop(name, None)
        self.forget(name)


class PrefixIndex(Followed):
    """The segments of ``store`` that ``choose`` does not leave out, by what they begin with."""

    def __init__(self, store: Store, choose: Choose, *, in_background: bool = False) -> None:
        super().__init__(store, in_background=in_background)
        self.choose = choose
        self._lock = threading.Lock()
        self._entries: dict[str, list[_Entry]] = {}
        self._by_block: dict[bytes, list[_Entry]] = {}

    def longest(self, token_ids: Sequence[int]) -> Match | None:
        """Finds the segment that shares the most tokens with the beginning of ``token_ids``."""
        self.follow()
        prompt = np.asarray(token_ids, dtype=np.int64)
        with self._lock:
            candidates: list[_Entry] = []
            blocks = 0
            for digest in _chain(prompt):
                if digest not in self._by_block:
                    break
                candidates = self._by_block[digest]
                blocks += 1
            # No candidate has all of the next block.
            shared, rest = blocks * BLOCK, prompt[blocks * BLOCK : (blocks + 1) * BLOCK]
            matches = [
                (shared + _common(entry.token_ids[shared : shared + BLOCK], rest), entry)
                for entry in candidates
            ]
        if not matches:
            return None
        tokens, entry = max(matches, key=lambda match: (match[0], -len(match[1].token_ids)))
        return entry.match(tokens)

    def named(self, document: str, token_ids: Sequence[int]) -> Match | None:
        """The cache of a document of one segment, blend or not, if ``token_ids`` begin with all of it."""
        self.follow()
        with self._lock:
            entries = list(self._entries.get(document, ()))
        if len(entries) != 1 or entries[0].segment:
            return None
        (entry,) = entries
        size = len(entry.token_ids)
        is_whole = np.array_equal(entry.token_ids, np.asarray(token_ids[:size], dtype=np.int64))
        return entry.match(size) if is_whole else None

    def times(self) -> list[datetime]:
        """The times that the chat template printed into the prefixes of the store's documents."""
        self.follow()
        times = (time_of(document.prefix["origin"]) for document in list(self._documents.values()))
        return sorted(set(filter(None, times)))

    def add(self, document: Document) -> None:
        for index, segment in enumerate(document.segments):
            if (variant := self.choose(document, segment)) is None:
                continue
            parts = segment_headers(self.store, document, segment, variant)
            artifacts = document.artifacts_of(segment, variant)
            ids = np.concatenate([part.token_ids.numpy() for part in parts])
            prefix_tokens = document.prefix["tokens"]
            entry = _Entry(document.name, index, variant, artifacts, ids, prefix_tokens, segment.identity)
            with self._lock:
                self._entries.setdefault(document.name, []).append(entry)
                # A blend that was kept is not what a prefill of its tokens gives: it is found by its name alone.
                if all(part.is_exact for part in parts):
                    for digest in _chain(ids):
                        self._by_block.setdefault(digest, []).append(entry)

    def forget(self, name: str) -> None:
        with self._lock:
            for entry in self._entries.pop(name, ()):
                for digest in _chain(entry.token_ids):
                    found = self._by_block.get(digest, [])
                    if entry in found:
                        found.remove(entry)
                    if not found:
                        self._by_block.pop(digest, None)


def _chain(token_ids: NDArray[np.int64]) -> Iterator[bytes]:
    """For each whole block a digest of it and of all blocks before it."""
    chained = b""
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        chained = blake3(chained + token_ids[start : start + BLOCK].tobytes()).digest()
        yield chained


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first tokens are equal."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
