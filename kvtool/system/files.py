"""Writing files so that a crash at any moment leaves the old file or the new one, whole.

Order, as in restic: temporary file, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kvtool.errors import StoreError
from kvtool.system.cache_dir import cache_dir

TEMPORARY = ".tmp-"

PATIENCE = 1.0
"""Seconds for which a lock is waited for without a word."""

_log = logging.getLogger(__name__)


class DiskFull(StoreError):
    """There is no room. What was stored before is safe."""


def write_atomic(
    path: Path, chunks: Iterable[bytes | memoryview], check: Callable[[Path], object] | None = None
) -> int:
    """Writes ``chunks`` to ``path`` and returns their size in bytes.

    ``check`` is given the temporary file, whole; if it raises, nothing is left of it.
    """
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        make_directory(path.parent)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # noqa: PTH123
            size = sum(file.write(chunk) for chunk in chunks)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
        temporary.replace(path)
        fsync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    return size


def write_private(path: Path, data: bytes) -> None:
    """Writes a new file that its owner alone may read. Raises ``FileExistsError`` rather than replace one."""
    with as_store_errors(path):
        make_directory(path.parent)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def write_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = (
            "the disk is full. What was stored before is safe. Free some space (kvtool gc removes what no document uses) "
            "and run the same command again: it goes on where it stopped"
        )
        return DiskFull(path, reason)
    remedy = "check that the directory is writable"
    if path.is_relative_to(cache_dir()):
        remedy = "set KVTOOL_CACHE_DIR to a directory that is writable"
    return StoreError(path, f"cannot be written ({error.strerror})", remedy)


@contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    """Raises what the system refuses below ``path`` as a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def file_state(path: Path) -> list[str | int]:
    """What differs once a file has been changed: its address, size, times and inode."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def make_directory(path: Path) -> None:
    """Like ``mkdir -p``, durable: a new directory's entry is synced too."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(directory: Path) -> None:
    """Removes what killed writers left under ``directory``. Only safe while no writer lives."""
    for path in directory.rglob(TEMPORARY + "*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds ``path`` exclusively, waiting for it; the kernel lets go when the holder dies."""
    with path.open("a") as file:
        _wait_for_lock(file, path, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Holds ``path`` exclusively if nobody else holds it; yields whether it does."""
    with path.open("a") as file:
        yield _try_lock(file)


@contextmanager
def locked_shared(path: Path, *, when_alone: Callable[[], None]) -> Iterator[None]:
    """Holds ``path`` together with others who share it; runs ``when_alone`` first if there are none."""
    with path.open("a") as file:
        if _try_lock(file):
            when_alone()
        _wait_for_lock(file, path, fcntl.LOCK_SH)
        yield


def holders(path: Path) -> list[str]:
    """The processes that hold ``path``, as "kvtool prefill docs (process 123)"; none where the system does not tell."""
    try:
        inode = path.stat().st_ino
        fields = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # 1: FLOCK  ADVISORY  READ 123 00:2f:456 0 EOF; one that waits has "->" before FLOCK.
    pids = {f[4] for f in fields if f[1] == "FLOCK" and f[5].endswith(f":{inode}")}
    return [_process(pid) for pid in sorted(pids, key=int)]


def _process(pid: str) -> str:
    try:
        words = Path("/proc", pid, "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return f"process {pid}"
    return f"{' '.join(words.split())[:200]} (process {pid})"


def _wait_for_lock(file: IO[str], path: Path, kind: int) -> None:
    """Takes the lock, and says who is waited for if that takes long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.02)
    _log.info("%s: waiting for %s", path, " and ".join(holders(path)) or "another process")
    fcntl.flock(file, kind)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
