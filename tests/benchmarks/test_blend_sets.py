"""Sets that are the same every time, questions that two documents answer and one does not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.corpora import blend_sets, texts
from benchmarks.corpora.blend_sets import HOPS, BlendQuestion, BlendSet
from benchmarks.corpora.sources import Source
from kvtool.measurement.haystack import Needle, hide
from kvtool.measurement.tasks import Question


@pytest.fixture
def sets(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[BlendSet]:
    def source(name: str) -> Source:
        lines = "".join(f"{name} has a line {n}.\n" for n in range(2000))
        return Source(name, lambda _: lines)

    kinds = {f"kind {name}": [source(name)] for name in ("a", "b", "c", "d", "e")}
    monkeypatch.setattr(texts, "HELD_OUT", kinds)
    return blend_sets.blend_sets(model)


def _hops(one: BlendSet) -> list[BlendQuestion]:
    return [question for question in one.questions if question.kind == "hop"]


def test_forty_sets_of_four_documents_of_mixed_kinds(sets: list[BlendSet]) -> None:
    assert [len(one.documents) for one in sets] == [4] * 40
    assert all(len({text.kind for text in one.documents}) == 4 for one in sets)
    every = [text for one in sets for text in one.documents]
    assert len({text.name for text in every}) == len({text.text for text in every}) == len(every)
    lengths = [len(text.text) for text in every]
    assert min(lengths) >= blend_sets.SHORTEST
    assert max(lengths) <= blend_sets.LONGEST
    assert len(set(lengths)) > 50


@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_the_continuation_is_what_follows_the_part_that_was_taken(depth: float) -> None:
    text = "The bay is wide. Boats lie in it.\n\nA mill is near. Its wheel turns slowly all day."
    needles = [Needle("The otter is called Amber.", depth), Needle("Magic number: Amber = 40719.", 0.7)]
    hidden = hide(needles, text, length=100, count_tokens=len)
    rest = blend_sets._rest(text, hidden)
    assert 0 < len(rest) < len(text)
    taken = hidden.text
    for needle in needles:
        taken = taken.replace(needle.text, "")
    assert [*taken.split(), *rest.split()] == [*text[: -len(rest)].split(), *rest.split()]


def test_sets_have_a_continuation(sets: list[BlendSet]) -> None:
    assert all(len(one.continuation) == blend_sets.PLAIN_TOKENS for one in sets)


def test_documents_of_one_source_follow_one_another(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"Line {n}.\n" for n in range(1000, 5000))
    monkeypatch.setattr(blend_sets, "SEEN", [Source(name, lambda _: lines) for name in blend_sets.ONE_SOURCE])
    made = blend_sets.one_source_sets(model, 6)
    assert [one.documents[0].kind for one in made] == [*blend_sets.ONE_SOURCE, *blend_sets.ONE_SOURCE[:2]]
    for one in made:
        numbers = [int(n) for text in one.documents for n in re.findall(r"Line (\d{4})\.", text.text)]
        assert numbers == sorted(set(numbers))
        assert len({text.kind for text in one.documents}) == 1


def test_the_same_sets_however_many(model: Any, sets: list[BlendSet]) -> None:
    assert blend_sets.blend_sets(model, 3) == sets[:3]
    assert len(blend_sets.blend_sets(model, 41)) == 41


def test_a_hop_needs_the_document_of_the_name_and_that_of_the_number(sets: list[BlendSet]) -> None:
    assert sum(len(_hops(one)) for one in sets) >= 100
    for one in sets:
        for question in _hops(one):
            (called,), (value,) = (step.answers for step in question.steps)
            link, key = question.documents
            assert link != key
            animal = question.steps[0].text.split()[3]
            assert [n for n, text in enumerate(one.documents) if animal in text.text] == [link]
            assert [n for n, text in enumerate(one.documents) if value in text.text] == [key]
            assert [n for n, text in enumerate(one.documents) if called in text.text] == sorted((link, key))
            assert called not in question.steps[0].text + question.steps[0].lead


def test_no_set_tells_names_or_numbers_apart_by_their_being_alone(sets: list[BlendSet]) -> None:
    for one in sets:
        whole = "\n".join(text.text for text in one.documents)
        assert whole.count(" is called ") == whole.count("Magic number: ") == len(_hops(one)) == HOPS >= 3
        answers = [step.answers for question in _hops(one) for step in question.steps]
        assert len(set(answers)) == 2 * HOPS


def test_prose_asks_for_two_documents_by_place_or_beginning(sets: list[BlendSet]) -> None:
    for one in sets:
        places, beginnings = (question for question in one.questions if question.kind == "prose")
        a, b = places.documents
        assert a < b
        assert all(blend_sets.ORDINALS[place] in places.steps[0].text for place in (a, b))
        for place in beginnings.documents:
            words = one.documents[place].text.split()
            assert " ".join(words[: blend_sets.BEGINNING_WORDS]) in beginnings.steps[0].text


def test_a_hop_is_right_if_both_steps_are() -> None:
    steps = (Question("hop", "?", "", ("Amber",)), Question("hop", "?", "", ("40719",)))
    question = BlendQuestion("hop", steps, (0, 1))
    assert question.right([" Amber.", " 40719."])
    assert not question.right([" Ruby.", " 40719."])
    assert not question.right([" Amber.", " 407190."])
