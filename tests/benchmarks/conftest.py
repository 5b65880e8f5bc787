"""benchmarks/ is no package of the installed kvtool: it is found from the repository."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))


class Tokenizer:
    """A token is a character."""

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def model() -> Any:
    """What is needed of a model to cut texts into tokens."""
    return SimpleNamespace(tokenizer=Tokenizer(), text_tokenizer=Tokenizer())
