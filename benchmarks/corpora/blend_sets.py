"""Sets of short documents that share a prompt, and questions that need two of them.

A multi-hop question asks for a number by a name that stands in another document: one says "The otter is called Amber.",
another "Magic number: Amber = 40719.", and what is asked is the otter's number. The model answers a hop at a time, the
second behind the right answer to the first, and is right if it is in both. Behind its own first answer it would score
the same but for luck, since with the wrong name it finds the wrong number; so all can be asked of a cache at once.

Questions in prose have no right answer: what the model says over a cache is compared with what it says after full
prefill. So is how it continues the last document, with no question at all.

Most sets have documents of several kinds. Those of ``one_source_sets`` have documents that follow one another in one source,
as those that a question retrieves are like one another. None of these sources is in the other sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from random import Random
from typing import Literal

import kvtool
from benchmarks.corpora.sources import HELD_OUT, SEEN
from benchmarks.corpora.texts import Text, cut, held_out
from kvtool.measurement.absent_words import ANIMALS, NAMES, absent_numbers, absent_words
from kvtool.measurement.haystack import Hidden, Needle, hide
from kvtool.measurement.needles import contained
from kvtool.measurement.tasks import Question
from kvtool.model.chat_template import document_tokens

SETS = 40
SIZE = 4
"""Documents of a set."""

SHORTEST, LONGEST = 130, 200
"""Tokens of a document, needles included."""

PLAIN_TOKENS = 24
"""Tokens of the text that follows the last document."""

ONE_SOURCE = ("news", "library", "help", "handbook")
"""Sources of ``one_source_sets`` in turn: news, a Python library, Python's help, a manual."""

HOPS = 3
"""Names, numbers and questions of a set: each name is a wrong answer to the other questions."""

# Chosen among eleven wordings by what the embedded model answers after full prefill. It does not take two hops in one
# answer: having said the name, it stops, or goes on with any number.
LINK, KEY = "The {} is called {}.", "Magic number: {} = {}."
ASK_HOP = "What is the {} called, and what is the magic number of that name?"
NAME_IS, NUMBER_IS = "The {} is called", "The {} is called {}. Magic number: {} ="

ASK_PLACES = "Compare the {} text with the {}: what is each of them about?"
ASK_BEGINNINGS = 'One of the texts begins with "{}", another with "{}". What is each of them about?'
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

BEGINNING_WORDS = 8

NAME_TOKENS, NUMBER_TOKENS, PROSE_TOKENS = 4, 8, 48
"""A name has room, and no second one behind it."""


@dataclass(frozen=True)
class BlendQuestion:
    """``steps`` are asked apart, each of the whole set; ``documents`` are the two that they need, by their places.

    "hop": the name, then the number, one answer each, from the two documents in that order. "prose": one step, no answer.
    """

    kind: Literal["hop", "prose"]
    steps: tuple[Question, ...]
    documents: tuple[int, int]

    def right(self, said: Sequence[str]) -> bool:
        """Whether ``said``, what the model said to each step, has all the answers."""
        return all(all(contained(step.answers, one)) for step, one in zip(self.steps, said, strict=True))


@dataclass(frozen=True)
class BlendSet:
    """``documents`` in the order of the prompt, in different lengths. ``continuation`` is what follows the last one."""

    name: str
    documents: tuple[Text, ...]
    questions: tuple[BlendQuestion, ...]
    continuation: str = ""


def blend_sets(model: kvtool.Model, number: int = SETS) -> list[BlendSet]:
    """``number`` sets. The same model gives the same sets, and the first are the same however many there are, up to 40.

    Raises ``KvtoolError`` if a source is not to be had or too short.
    """
    count = max(number, SETS)
    each = -(-count * SIZE // len(HELD_OUT))
    # Of each kind one, then the next of each: a set's documents are of as many kinds as there are.
    kinds = held_out(model, LONGEST + PLAIN_TOKENS, each).values()
    drawn = chain.from_iterable(zip(*kinds, strict=True))
    return [_set(model, f"blend-{n:02d}", list(islice(drawn, SIZE)), mixed=True) for n in range(number)]


def one_source_sets(model: kvtool.Model, number: int) -> list[BlendSet]:
    """``number`` sets, each of documents that follow one another in one source; otherwise as ``blend_sets``."""
    sets = []
    for n in range(number):
        name = ONE_SOURCE[n % len(ONE_SOURCE)]
        (source,) = (source for source in SEEN if source.name == name)
        size = LONGEST + PLAIN_TOKENS
        rounds = -(-number // len(ONE_SOURCE))
        piece = cut(model, source.text(), SIZE * size, rounds)[n // len(ONE_SOURCE)]
        ids = document_tokens(model, piece)
        texts = [
            Text(name, name, "", model.tokenizer.decode(ids[k * size : (k + 1) * size])) for k in range(SIZE)
        ]
        sets.append(_set(model, f"{name}-{n:02d}", texts, mixed=False))
    return sets


def _set(model: kvtool.Model, name: str, drawn: list[Text], *, mixed: bool) -> BlendSet:
    random = Random(name)
    if mixed:
        random.shuffle(drawn)
    hops, needles = _hops(random, drawn)
    documents, rest = [], ""
    for place, text in enumerate(drawn):
        hidden = hide(
            needles[place],
            text.text,
            length=random.randint(SHORTEST, LONGEST),
            count_tokens=lambda part: len(document_tokens(model, part)),
        )
        documents.append(replace(text, name=f"{name}-{place}-{text.source}.txt", text=hidden.text))
        rest = _rest(text.text, hidden)
    continuation = model.tokenizer.decode(document_tokens(model, rest)[:PLAIN_TOKENS])
    return BlendSet(name, tuple(documents), (*hops, *_prose(random, documents)), continuation)


def _rest(text: str, hidden: Hidden) -> str:
    """What follows the part of ``text`` that is in ``hidden``, where only needles and white space were added to it."""
    taken = len(re.sub(r"\s", "", hidden.text))
    taken -= sum(len(re.sub(r"\s", "", needle.text)) for needle in hidden.depths)
    ends = [n + 1 for n, character in enumerate(text) if not character.isspace()]
    return text[ends[taken - 1] if taken else 0 :]


def _hops(random: Random, drawn: Sequence[Text]) -> tuple[list[BlendQuestion], list[list[Needle]]]:
    """The questions, and each document's needles: names and numbers that belong together stand half a round apart."""
    whole = "\n".join(text.text for text in drawn)
    facts = zip(
        absent_words(random, ANIMALS, whole, HOPS),
        absent_words(random, NAMES, whole, HOPS),
        absent_numbers(random, whole, HOPS),
        strict=True,
    )
    order = random.sample(range(len(drawn)), len(drawn))
    half = len(drawn) // 2
    questions: list[BlendQuestion] = []
    needles: list[list[Needle]] = [[] for _ in drawn]
    for (animal, called, value), link, key in zip(facts, order, order[half:] + order[:half], strict=False):
        needles[link].append(Needle(LINK.format(animal, called), random.random()))
        needles[key].append(Needle(KEY.format(called, value), random.random()))
        asked = ASK_HOP.format(animal)
        steps = (
            Question("name", asked, NAME_IS.format(animal), (called,), max_tokens=NAME_TOKENS),
            Question(
                "number",
                asked,
                NUMBER_IS.format(animal, called, called),
                (value,),
                max_tokens=NUMBER_TOKENS,
            ),
        )
        questions.append(BlendQuestion("hop", steps, (link, key)))
    return questions, needles


def _prose(random: Random, documents: Sequence[Text]) -> Iterator[BlendQuestion]:
    """Two documents by their places in the prompt, and two by how they begin."""
    a, b = sorted(random.sample(range(len(documents)), 2))
    yield _compare("places", ASK_PLACES.format(ORDINALS[a], ORDINALS[b]), (a, b))
    a, b = random.sample(range(len(documents)), 2)
    begin = [" ".join(documents[place].text.split()[:BEGINNING_WORDS]) for place in (a, b)]
    yield _compare("beginnings", ASK_BEGINNINGS.format(*begin), (a, b))


def _compare(task: str, text: str, documents: tuple[int, int]) -> BlendQuestion:
    return BlendQuestion("prose", (Question(task, text, "", (), max_tokens=PROSE_TOKENS),), documents)
