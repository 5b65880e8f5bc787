"""Blocks that many documents share: what is found, and that neither finding nor forgetting goes through all documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvtool.connectors import block_index
from kvtool.connectors.block_index import BlockIndex, Source

SIZE, SHARED = 4, 30
"""Tokens of a block, and the blocks that all documents begin with."""


def chain(token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Each block by all tokens up to its end."""
    return [tuple(token_ids[: stop + SIZE]) for stop in range(0, len(token_ids) - SIZE + 1, SIZE)]


def tokens(number: int) -> list[int]:
    return [*range(SHARED * SIZE), *([1000 + number] * 2 * SIZE), 7]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> BlockIndex:
    """200 documents, d0 to d199: 30 blocks that all have, two of its own, and a token after them."""

    def headers(store: Any, document: Any, segment: Any, name: str) -> list[Any]:
        ids = torch.tensor(tokens(document.number))
        return [
            SimpleNamespace(is_exact=True, token_ids=ids[:10]),
            SimpleNamespace(is_exact=True, token_ids=ids[10:]),
        ]

    monkeypatch.setattr(block_index, "segment_headers", headers)
    made = BlockIndex([], lambda document, segment: "raw", chain, SIZE)
    monkeypatch.setattr(made, "follow", lambda: None)
    for number in range(200):
        made.add(document(number))
    return made


def document(number: int) -> Any:
    variants = (SimpleNamespace(artifact="prefix"), SimpleNamespace(artifact=f"segment{number}"))
    return SimpleNamespace(
        name=f"d{number}", number=number, segments=[None], artifacts_of=lambda *_: variants
    )


def nothing(_: Source) -> bool:
    return False


def test_the_source_of_the_last_block_has_all(index: BlockIndex) -> None:
    keys = chain(tokens(150))
    found = index.find([*keys, "unknown"], nothing)
    assert [str(block.source) for block in found[:-1] if block] == ["d150"] * (SHARED + 2)
    assert [block.tokens for block in found[:-1] if block] == [
        range(n * SIZE, (n + 1) * SIZE) for n in range(SHARED + 2)
    ]
    assert found[-1] is None
    assert found[0] is not None
    assert found[0].source.artifacts == ("prefix", "segment150")
    assert found[0].source.n_tokens == len(tokens(150))


def test_what_is_skipped_is_found_elsewhere_as_far_as_others_have_it(index: BlockIndex) -> None:
    found = index.find(chain(tokens(3)), lambda source: source.document == "d3")
    assert [block is not None for block in found] == [True] * SHARED + [False] * 2
    assert {str(block.source) for block in found if block} == {"d0"}
    assert index.find(chain(tokens(3)), lambda source: True) == [None] * (SHARED + 2)


def test_a_shared_block_is_found_and_forgotten_without_a_look_at_every_document(
    index: BlockIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def skip(source: Source) -> bool:
        asked[source.document] += 1
        return source.document in ("d0", "d1")

    found = index.find(chain(tokens(0))[:SHARED], skip)
    assert {str(block.source) for block in found if block} == {"d2"}
    assert asked == {"d0": 1, "d1": 1, "d2": 1}
    asked.clear()
    assert index.find(chain(tokens(0)), lambda source: not skip(source) or True) == [None] * (SHARED + 2)
    assert set(asked.values()) == {1}

    compared: list[object] = []
    equal = Source.__eq__
    monkeypatch.setattr(Source, "__eq__", lambda one, other: (compared.append(other), equal(one, other))[1])
    index.forget("d199")
    assert len(compared) <= 2 * SHARED
    assert index.find(chain(tokens(199)), nothing)[SHARED:] == [None] * 2
    assert index.find(chain(tokens(198)), nothing)[SHARED:] != [None] * 2


def test_nothing_stays_of_documents_that_are_forgotten(index: BlockIndex) -> None:
    index.add(document(5))
    for number in range(200):
        index.forget(f"d{number}")
        index.forget(f"d{number}")
    assert index.find(chain(tokens(5)), nothing) == [None] * (SHARED + 2)
    assert not index._sources
    assert not index._keys
