"""Haystacks: as long as was asked for, needles where they are said to be, answers that are nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from kvtool.errors import UsageError
from kvtool.measurement.absent_words import ANIMALS, NAMES
from kvtool.measurement.haystack import Needle, hide
from kvtool.measurement.needles import Haystack, Question, contained, haystacks
from kvtool.measurement.tasks import COMMON_WORDS

TOPICS = [topics[name] for name in sorted(topics)]
TASKS = ["single", "multi-value", "variables", COMMON_WORDS]


def words(text: str) -> int:
    return len(text.split())


def quarter_bytes(text: str) -> int:
    return (len(text.encode()) + 3) // 4


def merging(text: str) -> int:
    """Not additive, and one more character can be one token less, as with byte-pair merges."""
    return len(re.findall(r"the |[a-z]{4}| +|.", text, re.DOTALL))


COUNTS = [words, quarter_bytes, merging]
# Prose, text without sentences, without spaces, without words, in another script, and next to nothing.
DOCUMENTS = [
    "The harbour was built twice. The first wall stood for eleven winters. It was of rubble and lime. " * 9,
    "| year | yards |\n| --- | --- |\n" + "| 1961 | 4 |\n" * 60,
    "0123456789" * 60,
    "港は二度造られた。最初の壁は十一の冬を越した。" * 20,
    "x = f(1)\n\n\n" * 40,
    "a",
]


def make(
    texts: list[str] = TOPICS, lengths: tuple[int, ...] = (600,), contexts: int = 1, **options: Any
) -> list[Haystack]:
    chosen = {"seed": 0, "count_tokens": quarter_bytes} | options
    return haystacks(texts, lengths=lengths, contexts=contexts, **chosen)


def needle(question: Question) -> list[str]:
    """The beginnings of the sentences that answer a question."""
    if question.task == "variables":
        third, second, first = re.search(r"does (\w+) ", question.text)[1], *question.answers[:2]  # type: ignore[index]
        return [f"The variable {name} has" for name in (first, second, third)]
    if question.task == "multi-value":
        key = re.search(r"for (\w+)", question.text)[1]  # type: ignore[index]
        return [f"The {nth} magic number for {key} is" for nth in ("first", "second", "third")]
    return [f"The magic number for {key} is" for key in re.findall(r"for (\w+)", question.text)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.lists(st.sampled_from(DOCUMENTS), min_size=1, max_size=4),
    st.integers(100, 700),
    st.integers(1, 2),
    st.integers(0, 10),
    st.sampled_from(COUNTS),
)
def test_never_longer_than_asked_for_and_every_answer_once(
    texts: list[str], length: int, contexts: int, seed: int, count: Callable[[str], int]
) -> None:
    try:
        made = make(texts, (length,), contexts, seed=seed, count_tokens=count)
    except UsageError:  # too little text, or too short for needles: see below
        reject()
    assert [haystack.name for haystack in made] == [
        f"needles/{kind}-{length}-{n}" for n in range(contexts) for kind in ("keys", "values")
    ]
    for haystack in made:
        assert 0.9 * length < count(haystack.text) <= length
        for question in haystack.questions:
            assert all(contained(question.answers, " ".join(question.answers)))
            assert not set(question.answers) & set(re.findall(r"\w+", question.text + question.lead))
            if question.task == COMMON_WORDS:
                assert question.depth is None
                assert {haystack.text.count(answer) for answer in question.answers} == {3}
                continue
            for answer in question.answers:
                assert len(re.findall(rf"\b{answer}\b", haystack.text)) == (2 if answer.isalpha() else 1)
            starts = [haystack.text.index(sentence) for sentence in needle(question)]
            only = starts[0] / len(haystack.text) if len(starts) == 1 else None
            assert question.depth == (only if only is None else pytest.approx(only))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("length", [600, 2000])
def test_filled_within_three_percent(length: int, count: Callable[[str], int]) -> None:
    for haystack in make(lengths=(length,), contexts=2, count_tokens=count):
        assert 0.97 * length <= count(haystack.text) <= length
        assert not haystack.repeated


def test_the_same_seed_gives_the_same() -> None:
    once = make(lengths=(500, 900), contexts=2)
    assert make(lengths=(500, 900), contexts=2) == once
    assert make(lengths=(900,), contexts=2) == once[4:]
    other = make(lengths=(500, 900), contexts=2, seed=1)
    assert all(a.text != b.text for a, b in zip(once, other, strict=True))


def test_every_kind_of_question() -> None:
    keys, values = make()
    asked = [(question.task, len(question.history)) for question in keys.questions]
    assert asked == [("multi-key", 0)] * 4 + [("multi-query", 0)] * 2 + [("multi-key", 1), ("multi-key", 2)]
    assert [question.task for question in values.questions] == TASKS
    alone = {question.text: question for question in keys.questions[:4]}
    for question in keys.questions:
        for text, answer in question.history:
            assert all(contained(alone[text].answers, answer))
            assert answer in keys.text
        if question.history:
            assert replace(question, history=()) == alone[question.text]


def test_depths_cover_the_haystack() -> None:
    made = make(lengths=(1500,), contexts=5)
    single = [question.depth for haystack in made[1::2] for question in haystack.questions[:1]]
    assert single == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.1)
    for haystack in made[::2]:
        depths = [question.depth for question in haystack.questions[:4]]
        assert depths == sorted(depths)  # type: ignore[type-var]
        assert depths == pytest.approx([(n + 0.5) / 4 for n in range(4)], abs=0.22)


def test_a_variable_has_its_value_before_it_is_passed_on() -> None:
    for haystack in make(lengths=(500, 900), contexts=4)[1::2]:
        places = [haystack.text.index(sentence) for sentence in needle(haystack.questions[2])]
        assert places == sorted(places)


def test_haystacks_differ_in_their_documents() -> None:
    texts = [f"{letter * 5} " * 500 for letter in "abcdefgh"]
    most = [max("abcdefgh", key=h.text.count) for h in make(texts, contexts=4, count_tokens=words)]
    assert most == list("abcdefgh")


def test_needles_stand_between_sentences() -> None:
    text = "The wall had forty arches. The sea came in by them, and went out by them. " * 40
    for haystack in make([text]):
        for match in re.finditer(r"(The|Animals)( \w+)? (magic|variable|seen)", haystack.text):
            assert haystack.text[: match.start()].endswith(". ")


def test_a_needle_is_parted_from_what_has_no_spaces() -> None:
    made = hide([Needle("It is 7.", 0.0), Needle("It is 8.", 0.5)], "1" * 100, length=100, count_tokens=len)
    assert made.text == "It is 7.\n" + "1" * 40 + "\nIt is 8.\n" + "1" * 41
    assert made.depths == {Needle("It is 7.", 0.0): 0.0, Needle("It is 8.", 0.5): 0.5}


def test_what_the_documents_have_is_not_asked_about() -> None:
    spoken = (NAMES + ANIMALS).split()
    text = " ".join(word for word in spoken if word not in {"Amber", "Iris", "Willow", "Tulip", "Sage"})
    for haystack in make([f"{text}. "] * 3, (900,)):
        for question in haystack.questions:
            assert not any(contained(question.answers, text))
            assert all(contained(question.answers, " ".join(question.answers)))


def test_short_haystacks_have_fewer_needles_and_stay_half_document() -> None:
    for length in (60, 90, 130, 200, 400):
        keys, values = make(lengths=(length,))
        hidden = re.findall(r"(?:The (?:magic|first|second|third|variable)|Animals)[^.]*\.", keys.text)
        assert 2 * quarter_bytes(" ".join(hidden)) <= length
        alone = [q for q in keys.questions if q.task == "multi-key" and not q.history]
        assert len(alone) == len(hidden)
        assert [question.task for question in values.questions] == TASKS[: len(values.questions)]
    assert [len(make(lengths=(length,))[1].questions) for length in (60, 200, 600)] == [1, 3, 4]


def test_documents_too_short_are_repeated_and_it_is_said() -> None:
    text = "The wall had forty arches. " * 30
    assert quarter_bytes(text) == 203
    assert all(haystack.repeated for haystack in make([text], (600,)))
    assert not any(haystack.repeated for haystack in make([text], (150,)))


@pytest.mark.parametrize(
    ("texts", "length", "message"),
    [
        ([], 500, "length 500: the documents have 0 tokens in all, .* need 125 or more; name more"),
        (["", " \n"], 500, "length 500: the documents have 0 tokens in all"),
        (["The wall had forty arches."], 500, "length 500: the documents have 7 tokens in all"),
        (TOPICS, 20, r"length 20: its needles alone take \d\d tokens, .* choose a length of \d\d or more"),
        (TOPICS, 1, "length 1: its needles alone"),
    ],
)
def test_what_cannot_be_made_is_named(texts: list[str], length: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(texts, (length,))


@pytest.mark.parametrize(
    ("answers", "text", "share"),
    [
        (("40719",), "40719.", 1),
        (("40719",), "It is 140719, or 407191", 0),
        (("40719",), "40,719", 0),
        (("40719", "12345"), "40719, then 1234", 0.5),
        (("heron", "otter"), "The Heron and the OTTER", 1),
        (("otter",), "otters", 0),
        (("a+b",), "it is a+b", 1),
        (("heron",), "", 0),
    ],
)
def test_found(answers: tuple[str, ...], text: str, share: float) -> None:
    assert sum(contained(answers, text)) / len(answers) == share
