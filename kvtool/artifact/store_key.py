"""Keys that stores are encrypted with: 32 random bytes each, from files or the environment. Needs no torch."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.digest import digest
from kvtool.errors import KvtoolError

ENCRYPTION_KEY = "KVTOOL_ENCRYPTION_KEY"
"""The variable with the keys of encrypted stores: their files, separated as in ``PATH``, or one key itself."""

_TEXT = re.compile(r"[0-9a-f]{64}")


class BadKey(KvtoolError):
    """A key that is missing, or is none. The message never repeats it."""


@dataclass(frozen=True)
class StoreKey:
    """``secret`` are 32 bytes."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Its short name, 16 hexadecimal digits, which tells nothing of the key."""
        return digest(b"kvtool store key\n" + self.secret)[:16]

    def to_text(self) -> str:
        return self.secret.hex() + "\n"


def new_store_key() -> StoreKey:
    return StoreKey(secrets.token_bytes(32))


def store_keys() -> Mapping[str, StoreKey]:
    """The keys of the environment, by id, in order. Raises ``BadKey``."""
    return {key.id: key for key in _read(os.environ.get(ENCRYPTION_KEY, "").strip())}


def _read(text: str) -> Iterator[StoreKey]:
    if not text:
        return
    if _TEXT.fullmatch(text):
        yield StoreKey(bytes.fromhex(text))
        return
    for name in text.split(os.pathsep):
        try:
            content = Path(name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not text"
            remedy = "expected the file of a key, or its 64 hexadecimal digits"
            where = f"{ENCRYPTION_KEY}: {shown_name(name)}"
            raise BadKey(where, f"cannot be read ({cause})", remedy) from None
        if not _TEXT.fullmatch(content):
            remedy = "expected 64 hexadecimal digits, as kvtool keygen --encryption writes them"
            raise BadKey(name, "is no key of a store", remedy)
        yield StoreKey(bytes.fromhex(content))


def shown_name(name: str) -> str:
    """A file's name as it may be shown: what looks like none may be a key with a slip in it."""
    looks_like_one = os.sep in name or Path(name).suffix in (".key", ".pem")
    return name if looks_like_one else f"a text of {len(name)} characters"
