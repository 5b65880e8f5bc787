"""Errors of reading an artifact's file, in kvtool's terms. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.errors import ArtifactError, BrokenFile


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ArtifactError(path, "no such artifact", "run the same prefill or compress again") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise ArtifactError(path, reason, "check the disk and its permissions") from error


class BrokenArtifact(BrokenFile):
    """Its bytes are not those that kvtool wrote. What is merely newer, or cannot be read now, is no such thing."""


def broken(where: object, what: str) -> BrokenArtifact:
    remedy = (
        "nothing was loaded; kvtool verify --remove takes broken artifacts out, and the same prefill or compress makes "
        "them again"
    )
    return BrokenArtifact(where, what, remedy)
