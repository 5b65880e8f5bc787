"""Artifacts that lie elsewhere, as far as their token ids: what each says of itself, without its keys and values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from kvtool import limits
from kvtool.artifact.read import Artifact, BrokenArtifact
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.store.manifest import Variant
from kvtool.store.remote import Fetched, RemoteStore
from kvtool.system import files
from kvtool.system.cache_dir import cache_dir

FIRST = 64 * limits.KIB
"""Bytes that are asked for before it is known how many are needed. Of most artifacts they are enough."""


class Heads(RemoteStore):
    """``of``, where reading an artifact's keys and values fails, unless they were fetched for ``of``.

    A head is kept as a file with a hole, so that it is opened and checked as any artifact's is: its digest is taken over the
    header, which has the digests of the rest.
    """

    def __init__(self, of: RemoteStore) -> None:
        self.__dict__ |= of.__dict__
        self._folder = cache_dir() / "heads" / self.source.key

    def open_artifact(self, variant: Variant) -> Artifact:
        if self._kept.holds(variant):
            return self._kept.open_artifact(variant)
        path = self._folder / f"{variant.artifact}.safetensors"
        try:
            if path.is_file():
                return self._opened(path, variant)
        except BrokenArtifact:
            pass  # It is no more than a copy.
        files.write_atomic(path, self._head(variant), lambda temporary: self._check(temporary, variant))
        return self._opened(path, variant)

    def _check(self, temporary: Path, variant: Variant) -> None:
        os.truncate(temporary, variant.nbytes)
        _ = self._opened(temporary, variant).token_ids

    def _opened(self, path: Path, variant: Variant) -> Artifact:
        calibrations = Fetched(self._kept.calibrations, self.source)
        return Artifact.open(path, expected=variant.artifact, calibrations=calibrations)

    def _head(self, variant: Variant) -> Iterator[bytes]:
        first = self.source.part(variant.artifact, 0, min(FIRST, variant.nbytes))
        yield first
        start = 8 + int.from_bytes(first[:8], "little")
        if start > 8 + limits.HEADER_BYTES:
            return  # None of ours, as the check then says.
        if start > len(first):
            second = self.source.part(variant.artifact, len(first), start)
            yield second
            first += second
        try:
            end = start + int(json.loads(first[8:start])[TOKEN_IDS]["data_offsets"][1])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return
        if len(first) < end <= variant.nbytes:
            yield self.source.part(variant.artifact, len(first), end)
