"""Ranges of a file over HTTP: what is asked for, and the parts that come (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message

RANGES = 1000
"""Ranges of one request. They fit in its headers, and in what a kvtool server answers."""

_HEAD_BYTES = 1024
"""More than what stands before each part."""

_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(?:\d+|\*)", re.IGNORECASE)
_HEAD = re.compile(rb"content-range:\s*([^\r\n]*)", re.IGNORECASE)


def batched(ranges: Sequence[range]) -> Iterator[Sequence[range]]:
    """``ranges`` as requests take them."""
    return (ranges[start : start + RANGES] for start in range(0, len(ranges), RANGES))


def range_header(ranges: Sequence[range]) -> dict[str, str]:
    return {"Range": "bytes=" + ",".join(f"{wanted.start}-{wanted.stop - 1}" for wanted in ranges)}


def most_bytes(ranges: Sequence[range]) -> int:
    """The most bytes of an answer with these ranges."""
    return sum(map(len, ranges)) + (0 if len(ranges) == 1 else _HEAD_BYTES * (len(ranges) + 1))


def parse_parts(headers: Mapping[str, str] | Message, body: bytes, ranges: Sequence[range]) -> list[bytes]:
    """The bytes of ``ranges``, in their order, from an answer. Raises ``ValueError`` for one that has other ranges."""
    if len(ranges) == 1:
        _expect(str(headers.get("Content-Range", "")).encode(), ranges[0])
        if len(body) != len(ranges[0]):
            raise ValueError(f"{len(body)} bytes, not {len(ranges[0])}")
        return [body]
    if "multipart/byteranges" not in str(headers.get("Content-Type", "")).lower():
        raise ValueError("not multipart/byteranges")
    parts: list[bytes] = []
    place = 0
    for wanted in ranges:
        end = body.find(b"\r\n\r\n", place, place + _HEAD_BYTES)
        head = _HEAD.search(body, place, max(end, place))
        _expect(head[1] if head else b"", wanted)
        place = end + 4 + len(wanted)
        parts.append(body[end + 4 : place])
        if len(parts[-1]) != len(wanted):
            raise ValueError("it is cut off")
    return parts


def _expect(given: bytes, wanted: range) -> None:
    match = _RANGE.fullmatch(given.strip())
    if not match or range(int(match[1]), int(match[2]) + 1) != wanted:
        raise ValueError(f"{given[:80].decode('latin-1')!r}, not bytes {wanted.start}-{wanted.stop - 1}")
