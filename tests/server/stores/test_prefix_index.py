"""The longest cached beginning, against a search through everything."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

import kvtool
from kvtool.blending.blend import blend
from kvtool.store import prefix_index
from kvtool.store.local import LocalStore
from kvtool.store.prefix_index import PrefixIndex, raw_of


@pytest.fixture
def index(documents: LocalStore, served: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> PrefixIndex:
    monkeypatch.setattr(prefix_index, "FRESH", 0.0)
    return PrefixIndex(documents, raw_of(served.fingerprint))


def whole(store: LocalStore, name: str) -> list[int]:
    return torch.cat([part.token_ids for part in store.parts(name)]).tolist()


def common(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_it_is_the_longest(index: PrefixIndex, documents: LocalStore) -> None:
    torch.manual_seed(0)
    for name in documents:
        ids = whole(documents, name)
        for cut in (len(ids), len(ids) - 1, 40, 33, 16):
            prompt = ids[:cut] + torch.randint(0, 256, (30,)).tolist()
            match = index.longest(prompt)
            assert match is not None
            best = max(common(whole(documents, other), prompt) for other in documents)
            assert match.tokens == common(whole(documents, match.document), prompt) == best
            assert match.is_whole is (match.tokens == len(whole(documents, match.document)))
    assert index.longest([9] * 100) is None
    assert index.longest([]) is None


def test_it_follows_the_store(index: PrefixIndex, documents: LocalStore) -> None:
    ids = whole(documents, "docs/c.txt")
    assert index.longest(ids).document == "docs/c.txt"  # type: ignore[union-attr]
    documents.remove("docs/c.txt")
    match = index.longest(ids)
    assert match is None or match.document != "docs/c.txt"


def test_a_kept_blend_is_not_taken_for_a_prefill(
    index: PrefixIndex, documents: LocalStore, served: kvtool.Model
) -> None:
    names = ["docs/a.txt", "docs/b.txt"]
    cache = blend(documents, names, served, recompute=0)
    cache.save(documents, "both", served)
    match = index.longest(cache.token_ids.tolist())
    assert match is not None
    assert match.document == "docs/a.txt"


def test_what_is_broken_is_not_found(index: PrefixIndex, documents: LocalStore) -> None:
    ids = whole(documents, "docs/a.txt")
    shutil.rmtree(documents.root / "artifacts")
    assert index.longest(ids) is None


def test_one_variant_is_chosen_for_each_segment(documents: LocalStore) -> None:
    index = PrefixIndex(documents, lambda document, _: "raw" if document.name == "docs/b.txt" else None)
    match = index.longest(whole(documents, "docs/b.txt"))
    assert match is not None
    assert (match.document, match.variant) == ("docs/b.txt", "raw")
    match = index.longest(whole(documents, "docs/a.txt"))
    assert match is None or match.document == "docs/b.txt"


def test_a_store_is_followed_in_the_background(documents: LocalStore, served: kvtool.Model) -> None:
    index = PrefixIndex(documents, raw_of(served.fingerprint), in_background=True)
    index.follow()
    while not index.is_complete:
        time.sleep(0.01)
    assert index.longest(whole(documents, "docs/a.txt"))
