"""Cuts a text into pieces that fit a token limit, at paragraphs, sentences or words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from semchunk import chunk

from kvtool.counts import counted
from kvtool.errors import DocumentError

CHARACTERS_PER_TOKEN = 8
"""More than ordinary text has, so that a window of this many characters a token is nearly always too long."""

COUNTED_PER_CHARACTER = 32
"""Characters that may be counted for each of a text, to find its boundaries. Ordinary text takes 3 to 15."""


class _TooMuchCounted(Exception):
    """A text has no structure that is worth more counting."""


@dataclass(frozen=True)
class Piece:
    """``text[start:end]`` of the whole text; offsets count characters, not bytes."""

    text: str
    start: int
    end: int


def split(text: str, *, count_tokens: Callable[[str], int], limit: int) -> Iterator[Piece]:
    """Cut ``text`` into pieces of at most ``limit`` tokens, which come as soon as they are found.

    The pieces partition the text: joined in order they are the text again, white space included. A text that
    fits is one piece, and so is an empty one.

    Args:
        text: the whole document.
        count_tokens: how many tokens a string has by itself, without special tokens.
        limit: the most tokens a piece may have, at least 1.

    Raises:
        ValueError: ``limit`` is below 1.
        DocumentError: a single character has more tokens than ``limit``.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; a piece needs room for at least 1 token")
    count = bounded(count_tokens, limit)
    if count(text) <= limit:
        yield Piece(text, 0, len(text))
        return
    piece: Piece | None = None
    tokens = 0
    start = 0
    for end in _boundaries(text, count_tokens, limit):
        while start < end:
            stop, added = end, count(text[start:end])
            if added > limit:
                stop = _longest_fit(text, start, end, count, limit)
                added = count(text[start:stop])
            # semchunk leaves a short rest wherever it had to cut one level deeper. The sum is a cheap
            # estimate that spares most counts; merging across the cut can change the number either way.
            if piece and tokens + added <= limit:
                joined = text[piece.start : stop]
                if (joint := count(joined)) <= limit:
                    piece = Piece(joined, piece.start, stop)
                    tokens, start = joint, stop
                    continue
            if piece:
                yield piece
            piece = Piece(text[start:stop], start, stop)
            tokens, start = added, stop
    if piece:
        yield piece


def _boundaries(text: str, count_tokens: Callable[[str], int], limit: int) -> list[int]:
    """Ends of the pieces that semchunk finds, white space counted to the piece before it."""
    characters = 0

    def count_within_bounds(part: str) -> int:
        nonlocal characters
        characters += len(part)
        if characters > COUNTED_PER_CHARACTER * len(text):
            raise _TooMuchCounted
        return count_tokens(part)

    # semchunk drops the white space between its chunks, which is put back here: a little room is kept for it.
    room = limit - min(8, limit // 8)
    try:
        _, offsets = chunk(text, room, bounded(count_within_bounds, limit), memoize=False, offsets=True)
    except (RecursionError, _TooMuchCounted):
        # One level for each length of white space run, and each counts the whole rest of the text: a text can have
        # thousands of lengths.
        offsets = []
    return [*(start for start, _ in offsets[1:]), len(text)]


def _longest_fit(text: str, start: int, end: int, count: Callable[[str], int], limit: int) -> int:
    """The end of the longest run of characters from ``start`` that fits, for text without a better cut."""
    stops = range(start + 1, min(end, start + CHARACTERS_PER_TOKEN * limit) + 1)
    fitting = bisect_right(stops, limit, key=lambda stop: count(text[start:stop]))
    if not fitting:
        raise DocumentError(
            f"the character {text[start]!r} at offset {start}",
            f"is {counted(count(text[start]), 'token')} by itself, and a segment may have {limit}",
            "use a model with a longer context, or a shorter prefix",
        )
    return stops[fitting - 1]


def bounded(count_tokens: Callable[[str], int], limit: int) -> Callable[[str], int]:
    """``count_tokens``, but for a text far above the limit only more than the limit, from its beginning alone.

    Without it, each level of a split would tokenize the whole document again, and a server whatever it is sent.
    """

    def count(text: str) -> int:
        window = CHARACTERS_PER_TOKEN * limit
        while window < len(text):
            if (tokens := count_tokens(text[:window])) > limit:
                return tokens
            window *= 2
        return count_tokens(text)

    return count
