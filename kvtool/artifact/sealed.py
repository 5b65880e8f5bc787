"""Sealed files: encrypted and authenticated in chunks, so that ranges are read without the rest. Needs no torch.

A head of 32 bytes: ``MAGIC``, the first half of the key's id, a random salt. Then chunks of ``CHUNK`` bytes and a last one, which
may be shorter: each is AES-256-GCM (NIST SP 800-38D) under a key that HKDF-SHA-256 (RFC 5869) makes of the store's key and the
salt. The nonce is the chunk's number and whether it is the last, as in STREAM (Hoang et al., CRYPTO 2015), so that chunks cannot
be exchanged, left out, repeated or cut off. No safetensors reader takes such a file for an artifact: ``MAGIC`` would be the
length of a header beyond any bound.
"""

from __future__ import annotations

import io
import itertools
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kvtool import limits
from kvtool.artifact.reading import broken
from kvtool.artifact.store_key import ENCRYPTION_KEY, StoreKey, store_keys
from kvtool.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"kvseal\x01\xff"
CHUNK = 64 << 10
"""Bytes of a chunk before it is encrypted."""

_HEAD, _SALT, _TAG = 32, 16, 16


class Locked(ArtifactError):
    """A sealed file whose key is not given."""


def sealed_size(nbytes: int) -> int:
    """Bytes of the sealed file of a file of ``nbytes``."""
    return _HEAD + nbytes + _TAG * _count(nbytes)


def plain_size(nbytes: int, where: object) -> int:
    """Bytes of the file whose sealed file has ``nbytes``. Raises ``BrokenArtifact`` for a size that none has."""
    full, rest = divmod(nbytes - _HEAD, CHUNK + _TAG)
    size = full * CHUNK + max(0, rest - _TAG)
    if nbytes < _HEAD + _TAG or sealed_size(size) != nbytes:
        raise broken(where, f"it has {nbytes} bytes, as no sealed file has")
    return size


def seal(chunks: Iterable[bytes | memoryview], key: StoreKey) -> Iterator[bytes]:
    """A file's bytes → those of its sealed file."""
    head = MAGIC + bytes.fromhex(key.id) + secrets.token_bytes(_SALT)
    cipher = _cipher(key, head)
    yield head
    index, buffer = 0, bytearray()
    for chunk in chunks:
        buffer += chunk
        # One is kept back: only the end shows which is the last.
        while len(buffer) > CHUNK:
            yield cipher.encrypt(_nonce(index, is_last=False), bytes(buffer[:CHUNK]), head)
            del buffer[:CHUNK]
            index += 1
    yield cipher.encrypt(_nonce(index, is_last=True), bytes(buffer), head)


def unseal(chunks: Iterable[bytes | memoryview], where: object) -> Iterator[bytes | memoryview]:
    """A file's bytes, sealed or not → those of the file. What was handed out before an error is true, but not all of it.

    Raises ``Locked`` without its key, and ``BrokenArtifact`` for what was changed.
    """
    pieces = iter(chunks)
    buffer = bytearray()
    while len(buffer) < len(MAGIC) and (piece := next(pieces, None)) is not None:
        buffer += piece
    if not buffer.startswith(MAGIC):
        yield bytes(buffer)
        yield from pieces
        return
    while len(buffer) < _HEAD and (piece := next(pieces, None)) is not None:
        buffer += piece
    head = bytes(buffer[:_HEAD])
    cipher = _cipher(_key_of(head, where), head)
    del buffer[:_HEAD]
    index, size = 0, CHUNK + _TAG
    # What has come with the head may be the whole file.
    for piece in itertools.chain([b""], pieces):
        buffer += piece
        while len(buffer) > size:
            yield _decrypt(cipher, index, bytes(buffer[:size]), head, where, is_last=False)
            del buffer[:size]
            index += 1
    yield _decrypt(cipher, index, bytes(buffer), head, where, is_last=True)


def key_id_of(path: Path) -> str | None:
    """The id of the key that the file at ``path`` is sealed with; None if it is not sealed."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return _key_id(head) if head.startswith(MAGIC) else None


def stat_plain(path: Path) -> os.stat_result:
    """The status of a file, with the size that it has before it is sealed."""
    status = path.stat()
    if key_id_of(path) is None:
        return status
    fields = list(status[:10])
    fields[stat.ST_SIZE] = plain_size(status.st_size, path)
    return os.stat_result(fields)


def open_file(path: Path) -> IO[bytes]:
    """The file at ``path``, sealed or not, to be read without a buffer. Raises ``Locked`` without its key."""
    file = path.open("rb", buffering=0)
    try:
        if file.read(len(MAGIC)) == MAGIC:
            return SealedFile(file, path)  # type: ignore[return-value]
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of the file at ``path``, sealed or not, in pieces as it is before it is sealed."""
    with open_file(path) as file:
        while chunk := file.read(limits.MIB):
            yield chunk


class SealedFile(io.RawIOBase):
    """The file that ``file`` is the sealed one of, from its beginning. Reads and checks the chunks that are asked for."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        file.seek(0)
        self._head = file.read(_HEAD)
        self._cipher = _cipher(_key_of(self._head, path), self._head)
        self.size = plain_size(file.seek(0, io.SEEK_END), path)
        self._place, self._index, self._chunk = 0, -1, b""
        if not self.size:
            self._read_chunk(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Reads up to the end of one chunk."""
        if self._place >= self.size:
            return 0
        index, start = divmod(self._place, CHUNK)
        if index != self._index:
            self._index, self._chunk = index, self._read_chunk(index)
        view = memoryview(buffer).cast("B")
        part = self._chunk[start : start + len(view)]
        view[: len(part)] = part
        self._place += len(part)
        return len(part)

    def read(self, size: int | None = -1) -> bytes:
        """All of ``size`` bytes, or as many as are left."""
        left = max(0, self.size - self._place)
        data = bytearray(left if size is None or size < 0 else min(size, left))
        view, done = memoryview(data), 0
        while done < len(data) and (n := self.readinto(view[done:])):
            done += n
        return bytes(data[:done])

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read_chunk(self, index: int) -> bytes:
        self._file.seek(_HEAD + index * (CHUNK + _TAG))
        data = self._file.read(CHUNK + _TAG)
        is_last = index == _count(self.size) - 1
        return _decrypt(self._cipher, index, data, self._head, self._path, is_last=is_last)


def read_parts(
    fetch: Callable[[Sequence[range]], Sequence[bytes]], nbytes: int, ranges: Sequence[range], where: object
) -> list[bytes]:
    """Ranges of a file of ``nbytes``, of whose sealed file ``fetch`` gives ranges: whole chunks, asked for at once."""
    indices = sorted({index for wanted in ranges for index in _chunks(wanted)})
    runs = _runs(indices)
    places = [sealed_range(range(run.start * CHUNK, min(run.stop * CHUNK, nbytes)), nbytes) for run in runs]
    whole = [range(_HEAD), *places]
    if places and places[0].start == _HEAD:
        whole = [range(places[0].stop), *places[1:]]
    data = list(fetch(whole))
    head = data[0][:_HEAD]
    data = [data[0][_HEAD:], *data[1:]] if len(whole) == len(places) else data[1:]
    cipher, last = _cipher(_key_of(head, where), head), _count(nbytes) - 1
    plain: dict[int, bytes] = {}
    for run, part in zip(runs, data, strict=True):
        for number, index in enumerate(run):
            piece = part[number * (CHUNK + _TAG) : (number + 1) * (CHUNK + _TAG)]
            plain[index] = _decrypt(cipher, index, piece, head, where, is_last=index == last)
    return [_cut(plain, wanted) for wanted in ranges]


def sealed_range(wanted: range, nbytes: int) -> range:
    """The bytes of the sealed file that hold a range of a file of ``nbytes``."""
    chunks = _chunks(wanted)
    stop = _HEAD + chunks.stop * (CHUNK + _TAG)
    return range(_HEAD + chunks.start * (CHUNK + _TAG), min(stop, sealed_size(nbytes)))


def whole_chunks(stored: int, nbytes: int) -> int:
    """The bytes of a file that the first ``stored`` bytes of its sealed file hold in whole chunks."""
    if stored >= sealed_size(nbytes):
        return nbytes
    return max(0, stored - _HEAD) // (CHUNK + _TAG) * CHUNK


def _chunks(wanted: range) -> range:
    return range(wanted.start // CHUNK, max(wanted.start, wanted.stop - 1) // CHUNK + 1)


def _runs(indices: Sequence[int]) -> list[range]:
    runs: list[range] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def _cut(chunks: dict[int, bytes], wanted: range) -> bytes:
    some = _chunks(wanted)
    start = wanted.start - some.start * CHUNK
    return b"".join(chunks[index] for index in some)[start : start + len(wanted)]


def _count(nbytes: int) -> int:
    """Chunks of a file of ``nbytes``. An empty one has an empty last chunk."""
    return max(1, -(-nbytes // CHUNK))


def _nonce(index: int, *, is_last: bool) -> bytes:
    return struct.pack(">QI", index, is_last)


def _key_id(head: bytes) -> str:
    return head[len(MAGIC) : _HEAD - _SALT].hex()


def _key_of(head: bytes, where: object) -> StoreKey:
    if len(head) < _HEAD:
        raise broken(where, f"it has only {len(head)} bytes")
    id = _key_id(head)
    keys = store_keys()
    if id not in keys:
        given = f"those given are {', '.join(keys)}" if keys else "none is given"
        reason = f"is encrypted with key {id}, and {given}"
        raise Locked(where, reason, f"name the file of that key in {ENCRYPTION_KEY}")
    return keys[id]


def _decrypt(cipher: AESGCM, index: int, data: bytes, head: bytes, where: object, *, is_last: bool) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(_nonce(index, is_last=is_last), data, head)
    except (InvalidTag, ValueError):
        raise broken(where, f"chunk {index} of it has changed since it was sealed, or is cut off") from None


def _cipher(key: StoreKey, head: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ModuleNotFoundError as error:
        raise ModelError("encrypted stores", f"need {error.name}", "pip install 'kvtool[trust]'") from error
    return AESGCM(HKDF(SHA256(), 32, head[-_SALT:], b"kvtool sealed file").derive(key.secret))
