"""Writing files so that a crash at any moment leaves the old file or the new one, whole.

Order, as in restic: temporary file, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kvtool.errors import StoreError
from kvtool.system.cache_dir import cache_dir

TEMPORARY = ".tmp-"


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
        fcntl.flock(file, fcntl.LOCK_EX)
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
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
