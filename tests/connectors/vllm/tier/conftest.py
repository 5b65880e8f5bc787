"""Stores of tiny models' documents, for the tests of the tier."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

import kvtool
from kvtool.store.local import LocalStore
from tests.families import model_of, tiny

__all__ = ["model_of", "tiny"]

TEXTS = {
    "a.md": "The red apple costs three crowns, and the green one two. " * 4,
    "b.md": "The red apple costs three crowns, but the baker opens at six. " * 3,
}


@pytest.fixture(scope="session")
def store_of(
    model_of: Callable[[str], kvtool.Model], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], LocalStore]:
    """Two documents of a family's tiny model, raw; not to be written to."""

    @cache
    def make(name: str) -> LocalStore:
        place = tmp_path_factory.mktemp(f"{name}-documents")
        for title, text in TEXTS.items():
            (place / title).write_text(text)
        store = LocalStore(place / "kv-store")
        report = kvtool.prefill([place / title for title in TEXTS], model=model_of(name), store=store)
        assert not report.problems
        return store

    return make
