"""Agreement of answers: against cases by hand, and against a count that pairs words one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.measurement.answer_match import exact, f1

WORDS = st.lists(st.sampled_from(["red", "green", "blue", "ship"]), max_size=8)
TEXTS = st.text("abn theé.,!-=\n漢字ไ", max_size=30)


@pytest.mark.parametrize(
    ("said", "expected", "agrees"),
    [
        ("The red ship.", "red ship", 1.0),
        ("  RED,\nship! ", "a red ship", 1.0),
        ("red ship", "ship red", 1.0),
        ("red", "red ship", 2 / 3),
        ("red red red", "red", 0.5),
        ("red red", "red red blue", 0.8),
        ("“red” – ship…", "red ship", 1.0),
        ("green", "blue", 0.0),
        ("", "", 1.0),
        ("", "red", 0.0),
        ("theatre", "the atre", 0.0),
        ("東京タワー", "東京", 4 / 7),
        ("東京、です。", "東京です", 1.0),
        ("Python 言語", "python言語", 1.0),
        ("สวัสดี", "สวัสดี", 1.0),
        ("서울 시청", "서울", 2 / 3),
        ("==", "==", 1.0),
        ("==", "!=", 0.0),
        ("the", "", 0.0),
    ],
)
def test_f1_by_hand(said: str, expected: str, agrees: float) -> None:
    assert f1(said, expected) == pytest.approx(agrees)


@pytest.mark.parametrize(
    ("said", "expected", "same"),
    [
        ("The red ship.", "red ship", True),
        ("red ship", "ship red", False),
        ("東京。", "東京", True),
        ("東京", "京東", False),
        ("", "", True),
        ("", "red", False),
        ("<", ">", False),
    ],
)
def test_exact_by_hand(said: str, expected: str, same: bool) -> None:
    assert exact(said, expected) is same


@given(WORDS, WORDS)
def test_f1_against_pairing_words_one_by_one(said: list[str], expected: list[str]) -> None:
    left, pairs = list(expected), 0
    for word in said:
        if word in left:
            left.remove(word)
            pairs += 1
    if pairs:
        precision, recall = pairs / len(said), pairs / len(expected)
        right = 2 * precision * recall / (precision + recall)
    else:
        right = float(said == expected)
    assert f1(" ".join(said), " ".join(expected)) == pytest.approx(right)


@given(TEXTS, TEXTS)
def test_laws(said: str, expected: str) -> None:
    assert f1(said, said) == 1
    assert exact(said, said)
    assert 0 <= f1(said, expected) <= 1
    assert f1(said, expected) == f1(expected, said)
    assert f1(said, expected) == 1 or not exact(said, expected)
