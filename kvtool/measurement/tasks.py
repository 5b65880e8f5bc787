"""Retrieval tasks: questions, and the sentences that answer them.

They are worded so that a model of 135M parameters answers as many as it can. A loss shows only where the raw cache answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from kvtool.measurement.absent_words import ANIMALS, NAMES, absent_numbers, absent_words
from kvtool.measurement.haystack import Needle

MOST_KEYS = MOST_VALUES = 4
"""Needles of ``keys``, and tasks of ``values``, where there is room. A small model confuses more keys than that."""

COMMON_WORDS = "common-words"

KEY = "The magic number for {} is {}."
ASK_KEY, KEY_IS = "What is the magic number for {}?", "The magic number for {} is"
WORDING = (KEY, ASK_KEY, KEY_IS)
"""Of a key: its needle, its question, and the beginning of the answer."""

LOOKUP = ("Magic number: {} = {}.", "What is the magic number of {}?", "Magic number: {} =")
"""Another wording of a key, chosen among seven by what the raw cache alone finds. Where "is" stands before the number, as in
``WORDING``, the embedded model takes one key for another in a third to a half of all questions."""

LOOKUP_TOKENS = 8
"""The most tokens of an answer to it: a space and five digits, also where each is a token."""

ASK_BOTH = "What is the magic number for {}, and what is the magic number for {}?"

VALUE = "The {} magic number for {} is {}."
ASK_VALUES = "What is the first magic number for {}, what is the second, and what is the third?"
FIRST_IS = "The first magic number for {} is"

ASSIGNED, SAME = "The variable {} has the value {}.", "The variable {} has the value of the variable {}."
ASK_CHAIN = (
    "From which variable does {} have its value, from which variable does that one, and what is the value?"
)
COMES_FROM = "The variable {} has the value of the variable"

SEEN = "Animals seen today: {}."
ASK_SEEN, MOST_SEEN = "Which two animals were seen most often?", "The two animals seen most often are the"


@dataclass(frozen=True)
class Question:
    """A question. ``lead`` is the beginning of the answer, which the model continues; it should contain all of ``answers``.

    ``depth`` is that of the needle, 0 to 1, None where there are several. ``history`` are the turns before, each a question
    with its right answer.
    """

    task: str
    text: str
    lead: str
    answers: tuple[str, ...]
    depth: float | None = None
    history: tuple[tuple[str, str], ...] = ()
    max_tokens: int = 16


@dataclass(frozen=True)
class Task:
    """A question, and the needles that answer it, which other questions may share."""

    question: Question
    needles: tuple[Needle, ...]


@dataclass(frozen=True)
class Key:
    """A name with its number, both absent from the documents. ``depth`` is that of its needle."""

    name: str
    number: str
    depth: float


def draw_keys(random: Random, text: str, count: int) -> list[Key]:
    """``count`` keys, one in each of as many equal parts of the haystack."""
    names = absent_words(random, NAMES, text, count)
    numbers = absent_numbers(random, text, count)
    return list(map(Key, names, numbers, _spread(random, count)))


def key_task(key: Key, wording: tuple[str, str, str] = WORDING) -> Task:
    """The question for ``key`` alone."""
    needle, question, lead = wording
    asked = Question("multi-key", question.format(key.name), lead.format(key.name), (key.number,))
    return Task(asked, (Needle(needle.format(key.name, key.number), key.depth),))


def keys(random: Random, text: str, number: int) -> list[Task]:
    """Questions for each of ``number`` keys, at least two, for pairs of them, and for up to two after other turns."""
    drawn = draw_keys(random, text, number)
    alone = [key_task(key) for key in drawn]
    order = random.sample(range(number), number)

    def both(a: int, b: int) -> Task:
        text, lead = ASK_BOTH.format(drawn[a].name, drawn[b].name), KEY_IS.format(drawn[a].name)
        question = Question("multi-query", text, lead, (drawn[a].number, drawn[b].number), max_tokens=32)
        return Task(question, alone[a].needles + alone[b].needles)

    def later(turn: int) -> Task:
        history = tuple((alone[n].question.text, alone[n].needles[0].text) for n in order[:turn])
        task = alone[order[turn]]
        return replace(task, question=replace(task.question, history=history))

    pairs = list(zip(order[::2], order[1::2], strict=False))[:2]
    return [*alone, *(both(a, b) for a, b in pairs), *(later(turn) for turn in (1, 2) if turn < number)]


def values(random: Random, text: str, number: int, depth: float) -> list[Task]:
    """The first ``number`` of: one needle at ``depth``, a key with three values, a chain of variables, common words."""
    single, several, a, b, c = absent_words(random, NAMES, text, 5)
    one, *three, value = absent_numbers(random, text, 5)
    often, too, *once = absent_words(random, ANIMALS, text, 8)
    seen = [(often, too, once[0]), (often, *once[1:3]), (too, *once[3:5]), (often, too, once[5])]
    text, lead = ASK_VALUES.format(several), FIRST_IS.format(several)
    questions = [
        Question("multi-value", text, lead, (*three,), max_tokens=48),
        Question("variables", ASK_CHAIN.format(c), COMES_FROM.format(c), (b, a, value), max_tokens=32),
        Question(COMMON_WORDS, ASK_SEEN, MOST_SEEN, (often, too)),
    ]
    sentences = [
        [VALUE.format(nth, several, n) for nth, n in zip(("first", "second", "third"), three, strict=True)],
        [ASSIGNED.format(a, value), SAME.format(b, a), SAME.format(c, b)],
        [SEEN.format(", ".join(random.sample(animals, 3))) for animals in seen],
    ]
    needle = Needle(KEY.format(single, one), depth)
    tasks = [Task(Question("single", ASK_KEY.format(single), KEY_IS.format(single), (one,)), (needle,))]
    places = _spread(random, sum(map(len, sentences[: number - 1])))
    random.shuffle(places)
    for question, hidden in zip(questions[: number - 1], sentences, strict=False):
        # In their order: a variable has its value before another takes it over.
        depths, places = sorted(places[: len(hidden)]), places[len(hidden) :]
        tasks.append(Task(question, tuple(map(Needle, hidden, depths))))
    return tasks


def needles_of(tasks: Iterable[Task]) -> list[Needle]:
    return list(dict.fromkeys(needle for task in tasks for needle in task.needles))


def _spread(random: Random, number: int) -> list[float]:
    """Depths from the top to the bottom, one drawn from each of ``number`` equal parts."""
    return [(n + random.random()) / number for n in range(number)]
