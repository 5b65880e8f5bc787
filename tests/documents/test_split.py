from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.documents import split as splitting
from kvtool.documents.split import Piece
from kvtool.errors import DocumentError


def split(text: str, *, count_tokens: Any, limit: int) -> list[Piece]:
    return list(splitting.split(text, count_tokens=count_tokens, limit=limit))


def words(text: str) -> int:
    return len(text.split())


def quarter_bytes(text: str) -> int:
    return (len(text.encode()) + 3) // 4


def uneven(text: str) -> int:
    """Not additive, like a byte-pair tokenizer: "aa" is one token, and so are four spaces."""
    return len(text.replace("aa", "a").replace("    ", " "))


def assert_partition(pieces: list[Piece], text: str) -> None:
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert all(piece.text == text[piece.start : piece.end] for piece in pieces)


TEXTS = st.one_of(
    st.text(max_size=300),
    st.text("ab .,\n\t\r  é\u200b漢", max_size=500),
    st.lists(
        st.sampled_from(["word", "aaaa", " ", "   ", "\n", "\n\n", "\n\n\n", ". ", "!", "\t", "😀"])
    ).map("".join),
)


@settings(max_examples=200)
@given(TEXTS, st.integers(1, 40), st.sampled_from([words, quarter_bytes, uneven, len]))
def test_pieces_partition_the_text_and_fit(text: str, limit: Any, count: Any) -> None:
    pieces = split(text, count_tokens=count, limit=limit)
    assert_partition(pieces, text)
    assert all(count(piece.text) <= limit for piece in pieces)
    assert all(piece.text for piece in pieces) or pieces == [Piece("", 0, 0)]
    if count(text) <= limit:
        assert len(pieces) == 1


def test_cuts_between_paragraphs_then_sentences_then_words() -> None:
    paragraphs = "one two three\n\nfour five six\n\nseven eight nine"
    assert [piece.text for piece in split(paragraphs, count_tokens=words, limit=3)] == [
        "one two three\n\n",
        "four five six\n\n",
        "seven eight nine",
    ]
    sentences = "One two three. Four five six."
    assert [piece.text for piece in split(sentences, count_tokens=words, limit=4)] == [
        "One two three. ",
        "Four five six.",
    ]
    assert [piece.text for piece in split("a b c d e", count_tokens=words, limit=2)] == ["a b ", "c d ", "e"]


def test_a_short_rest_joins_its_neighbour() -> None:
    text = "word " * 21 + "\n\n" + "word " * 5
    assert [words(piece.text) for piece in split(text, count_tokens=words, limit=20)] == [18, 8]


@pytest.mark.parametrize(
    "text",
    ["x" * 50_000, "a" + " " * 50_000 + "b", "\n" * 50_000, "." * 50_000, "漢字" * 20_000],
    ids=["letters", "spaces", "newlines", "dots", "ideographs"],
)
def test_text_without_a_place_to_cut_still_fits(text: str) -> None:
    pieces = split(text, count_tokens=quarter_bytes, limit=100)
    assert_partition(pieces, text)
    assert all(quarter_bytes(piece.text) <= 100 for piece in pieces)


def test_more_lengths_of_white_space_than_python_recurses() -> None:
    text = "".join("word" + "\n" * length for length in range(1, 1200))
    pieces = split(text, count_tokens=len, limit=64)
    assert_partition(pieces, text)
    assert all(len(piece.text) <= 64 for piece in pieces)


def test_white_space_of_ever_longer_runs_is_not_counted_at_each_length() -> None:
    text = "".join("word" + " " * length for length in range(1, 401))
    counted = 0

    def count(part: str) -> int:
        nonlocal counted
        counted += len(part)
        return len(part.split()) + part.count(" " * 64)

    assert_partition(split(text, count_tokens=count, limit=1000), text)
    assert counted < 64 * len(text)


def test_pieces_come_while_the_rest_is_still_to_be_cut() -> None:
    text = "one two three. " * 1000
    first = next(splitting.split(text, count_tokens=words, limit=30))
    assert (first.start, words(first.text)) == (0, 27)


def test_characters_counted_stay_a_small_multiple_of_the_text() -> None:
    choose = random.Random(0).choice
    text = "".join(choose(["alpha ", "beta ", "gamma. ", "delta\n", "\n\n"]) for _ in range(100_000))
    counted = 0

    def count(part: str) -> int:
        nonlocal counted
        counted += len(part)
        return quarter_bytes(part)

    assert_partition(split(text, count_tokens=count, limit=1000), text)
    assert counted < 10 * len(text)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match=rf"limit is {limit}; .* at least 1 token"):
        split("text", count_tokens=len, limit=limit)


def test_a_character_that_does_not_fit_is_named() -> None:
    with pytest.raises(DocumentError, match=r"'😀' at offset 3: is 4 tokens.* may have 2; .*longer context"):
        split("ab 😀", count_tokens=lambda text: len(text.encode()), limit=2)
