"""Retrieval tasks: sentences hidden in the user's own documents, and questions about them.

The tasks are in the manner of RULER (arXiv 2404.06654): one needle, several keys, several values, several queries, a chain of
variables, common words. As in SCBench (arXiv 2412.10319), one cache is asked many questions, some of them after earlier
turns, since a cache that suits one question can fail the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from kvtool.errors import UsageError
from kvtool.measurement.haystack import Needle, document_text, hide
from kvtool.measurement.tasks import MOST_KEYS, MOST_VALUES, Question, Task, keys, needles_of, values

__all__ = ["Haystack", "Question", "contained", "haystacks"]

CountTokens = Callable[[str], int]
Draw = Callable[[Random, str, int], list[Task]]


@dataclass(frozen=True)
class Haystack:
    """``text`` has at most ``length`` tokens, needles included. It is ``repeated`` if the documents have fewer."""

    name: str
    text: str
    length: int
    questions: tuple[Question, ...]
    repeated: bool = False


def haystacks(
    texts: Sequence[str], *, lengths: Sequence[int], contexts: int, seed: int, count_tokens: CountTokens
) -> list[Haystack]:
    """Makes ``contexts`` haystacks of kind "keys" and as many of kind "values" for each of ``lengths``, in tokens.

    "keys" hides two to four keys, asked alone, two at once, and in later turns. "values" hides one needle, at another
    depth in every haystack, a key with three values, a chain of three variables, and common words. Half of a haystack
    or more is documents, so a short one has fewer keys, or only the first tasks of "values". The same seed gives the
    same haystacks. ``count_tokens`` counts without special tokens.

    Raises ``UsageError``, naming the length, if ``texts`` have less than a quarter of it, or it has no room for needles.
    """
    result = []
    for length in lengths:
        for number in range(contexts):
            kinds: dict[str, tuple[Draw, range]] = {
                "keys": (keys, range(MOST_KEYS, 1, -1)),
                "values": (partial(values, depth=(number + 0.5) / contexts), range(MOST_VALUES, 0, -1)),
            }
            for half, (kind, (draw, counts)) in enumerate(kinds.items()):
                name = f"needles/{kind}-{length}-{number}"
                start = (2 * number + half) / (2 * contexts)
                text, repeated = document_text(texts, start=start, length=length, count_tokens=count_tokens)
                draws = (draw(Random(f"{seed}/{name}"), text, n) for n in counts)
                tasks = _first_that_fits(draws, length, count_tokens)
                result.append(haystack(name, tasks, text, length, count_tokens, repeated))
    return result


def haystack(
    name: str,
    tasks: Sequence[Task],
    text: str,
    length: int,
    count_tokens: Callable[[str], int],
    repeated: bool = False,
) -> Haystack:
    """The needles of ``tasks`` hidden in ``length`` tokens of ``text``, with their questions."""
    hidden = hide(needles_of(tasks), text, length=length, count_tokens=count_tokens)
    return Haystack(name, hidden.text, length, tuple(_placed(t, hidden.depths) for t in tasks), repeated)


def contained(answers: Sequence[str], text: str) -> list[bool]:
    """Which of ``answers`` occur in ``text`` as whole words or numbers, in either case."""
    matches = [re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers]
    return [match is not None for match in matches]


def _first_that_fits(draws: Iterable[list[Task]], length: int, count_tokens: CountTokens) -> list[Task]:
    """The first of ``draws``, which go from many needles to few, whose needles leave half of ``length``."""
    tokens = 0
    for tasks in draws:
        tokens = count_tokens("\n".join(needle.text for needle in needles_of(tasks)))
        if 2 * tokens <= length:
            return tasks
    raise UsageError(
        f"length {length:,}",
        f"its needles alone take {tokens:,} tokens, and half should be documents",
        f"choose a length of {2 * tokens:,} or more",
    )


def _placed(task: Task, depths: Mapping[Needle, float]) -> Question:
    """The question with the depth of its needle, None where it has several."""
    return replace(task.question, depth=depths[task.needles[0]] if len(task.needles) == 1 else None)
