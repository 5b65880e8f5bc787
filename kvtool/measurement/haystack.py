"""Haystacks: text of documents, and needles hidden in it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvtool.counts import counted
from kvtool.documents.split import CHARACTERS_PER_TOKEN
from kvtool.errors import UsageError

MOST_REPEATS = 4
"""Times that documents too short for a haystack are repeated, at most. Repeated more often they are no document."""

NEAR = 0.08
"""How far a needle may be from its depth, as a share of the text, before a worse kind of place is taken."""

# Places for a needle, the best first: the end of a sentence or paragraph, of a line, of a word. A full stop
# after one letter or a digit is an initial or a list's number, and wrapped prose ends its lines within sentences.
_PLACES = (
    re.compile(r"""\w[^\W\d_][.!?]+["')\]”’*_]*(?=\s+[^\sa-z])|[。！？]+[」』”’]*|\S(?=[ \t]*\n\s*\n)"""),
    re.compile(r"\S(?=[ \t]*\n)"),
    re.compile(r"\S(?=\s)"),
)
_SENTENCE_END = re.compile(r"""[.!?。！？]["')\]”’*_」』]*$""")


@dataclass(frozen=True)
class Needle:
    """A sentence to hide. ``depth`` 0 is the beginning of the haystack, 1 its end."""

    text: str
    depth: float


@dataclass(frozen=True)
class Hidden:
    """A text with needles. ``depths`` are where they are: the characters before a needle divided by all characters."""

    text: str
    depths: Mapping[Needle, float]


def document_text(
    texts: Sequence[str], *, start: float, length: int, count_tokens: Callable[[str], int]
) -> tuple[str, bool]:
    """At least ``length`` tokens of ``texts``, one after the other and round again, and whether any are repeated.

    They begin near the share ``start`` of all of them, so that haystacks can differ. Raises ``UsageError`` if the texts
    have less than a quarter of ``length``.
    """
    whole = "\n\n".join(filter(None, map(str.strip, texts)))
    begin = _place(whole, start) if start else 0
    ring = f"{whole[begin:]}\n\n{whole[:begin]}".strip() + "\n\n"
    characters = CHARACTERS_PER_TOKEN * length
    # A longer text need not be counted whole, which could take long.
    tokens = min(length, count_tokens(ring)) if whole and len(ring) < characters else bool(whole) * length
    if tokens * MOST_REPEATS < length or not tokens:
        raise UsageError(
            f"length {length:,}",
            f"the documents have {counted(tokens, 'token')} in all, and haystacks of this length need "
            f"{max(1, length // MOST_REPEATS):,} or more",
            "name more documents, or choose a smaller length",
        )
    while count_tokens(text := (ring * (characters // len(ring) + 1))[:characters]) < length:
        characters *= 2
    return text, tokens < length


def hide(needles: Sequence[Needle], text: str, *, length: int, count_tokens: Callable[[str], int]) -> Hidden:
    """Hides ``needles`` in as much of ``text`` as makes ``length`` tokens with them, never more.

    Needles at the same place keep their order. The needles alone must fit.
    """

    def tokens(end: int) -> int:
        return count_tokens(_joined(needles, text[:end]).text)

    # What bisect returns is the last number that it tried and found to fit, also where a longer text has fewer tokens,
    # as happens with merges.
    return _joined(needles, text[: bisect_right(range(1, len(text) + 1), length, key=tokens)])


def _joined(needles: Sequence[Needle], text: str) -> Hidden:
    joined, end = "", 0
    starts: dict[Needle, int] = {}
    for place, needle in sorted(((_place(text, n.depth), n) for n in needles), key=lambda pair: pair[0]):
        joined += text[end:place]
        if joined and not joined[-1].isspace():
            joined += " " if _SENTENCE_END.search(joined, len(joined) - 4) else "\n"
        starts[needle] = len(joined)
        joined += needle.text
        # A digit right after the full stop would continue the needle's number.
        if not text[place : place + 1].isspace():
            joined += "\n"
        end = place
    joined += text[end:]
    return Hidden(joined, {needle: start / len(joined) for needle, start in starts.items()})


def _place(text: str, depth: float) -> int:
    """The best place for a needle near ``depth``, as an offset into ``text``."""
    target, reach = round(depth * len(text)), round(NEAR * len(text))
    for pattern in _PLACES:
        places = [m.end() for m in pattern.finditer(text, max(0, target - reach), target + reach)]
        if places:
            return min(places, key=lambda place: abs(place - target))
    return target
