"""Which documents others are prefilled after: at random, or the most similar."""

from __future__ import annotations

import pytest

import kvtool
from kvtool.blending import neighbours
from kvtool.blending.neighbours import CHOICES, Neighbours
from kvtool.digest import digest
from kvtool.store.local import LocalStore

SEA, MILL, BOTH, ELSE = [1, 2, 3, 9, 9], [4, 5, 6, 9, 9], [1, 4, 7, 9, 9], [7, 8, 8, 9, 9]
CANDIDATES = {"mill": MILL, "else": ELSE, "both": BOTH, "sea": SEA}


def test_the_most_similar_come_first() -> None:
    similar = CHOICES["similar"]
    assert similar([1, 2, 3, 3, 9], CANDIDATES) == ["sea", "both", "mill", "else"]
    assert similar([4, 5, 6, 1], CANDIDATES) == ["mill", "both", "sea", "else"]
    # What all have says nothing, and neither do tokens that none has.
    assert similar([9, 9, 77], CANDIDATES) == list(CANDIDATES)
    assert similar([], CANDIDATES) == list(CANDIDATES)
    assert similar([1], {}) == []


def test_length_does_not_count() -> None:
    assert (
        CHOICES["similar"]([1, 2], {"other": [5], "long": [1, 2, 3, 4, 6, 8], "short": [1, 2]})[0] == "short"
    )


def test_random_is_by_digests_of_names(documents: LocalStore, lively: kvtool.Model) -> None:
    like = documents["a.txt"]
    others = sorted(set(documents) - {"a.txt"}, key=lambda name: digest(name.encode()))
    chosen = Neighbours(documents, lively, like, "random").of(like, 2, 1000)
    assert [neighbour.document for neighbour in chosen] == others[:2]
    # No more than there are, and none that is too long.
    assert len(Neighbours(documents, lively, like, "random").of(like, 9, 1000)) == len(others)
    assert Neighbours(documents, lively, like, "similar").of(like, 9, 20) == []


def test_candidates_are_bounded(
    documents: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = documents["a.txt"]
    first = sorted(documents, key=lambda name: digest(name.encode()))[:2]
    monkeypatch.setattr(neighbours, "CANDIDATES", 2)
    for choice in CHOICES:
        chosen = Neighbours(documents, lively, like, choice).of(like, 9, 1000)
        assert {neighbour.document for neighbour in chosen} == set(first) - {"a.txt"}
