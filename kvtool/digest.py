"""Canonical bytes and their digests: the same on every machine."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import blake3

Json = Any


def canonical_json(value: Json) -> bytes:
    """Sorted keys, no spaces, no NaN, UTF-8, as codecs write it. Raises ``ValueError`` for NaN and infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(data: bytes | memoryview) -> str:
    return str(blake3.blake3(data).hexdigest())


def is_digest(text: object) -> bool:
    """Whether it could be one: only then may it become a path."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def digest_json(value: Json) -> str:
    return digest(canonical_json(value))


def digest_token_ids(token_ids: Sequence[int]) -> str:
    """Digest of token ids as little-endian int64."""
    return digest(struct.pack(f"<{len(token_ids)}q", *token_ids))
