"""Spans of layers, of any range of tokens and any variant, hold what ``Store.read`` gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool.connectors import reading
from kvtool.connectors.reading import CHUNK, split, steps
from kvtool.connectors.warm_up import warm_up
from kvtool.errors import MismatchError
from kvtool.store.local import LocalStore

NAME = "docs/b.md"


@pytest.fixture(scope="module")
def variants(prefilled: Path, tmp_path_factory: pytest.TempPathFactory, tiny: kvtool.Model) -> LocalStore:
    """The store with every way of coding that keeps all tokens, and one that loses some."""
    store = LocalStore(Path(shutil.copytree(prefilled, tmp_path_factory.mktemp("variants") / "store")))
    kvtool.compress(store, recipe="kivi", bits=4)
    kvtool.compress(store, recipe="cachegen")
    kvtool.compress(store, recipe="streaming-llm", keep=0.5)
    return store


def whole(store: LocalStore, variant: str, layer: int, side: str) -> torch.Tensor:
    parts = store.parts(NAME, variant)
    return torch.cat([getattr(part.layer(layer), side) for part in parts], 1)


@pytest.mark.parametrize("variant", ["raw", "kivi", "cachegen"])
@pytest.mark.parametrize("cut", [slice(0, None), slice(0, 20), slice(5, 30), slice(17, 18)])
def test_any_range_of_tokens(variants: LocalStore, variant: str, cut: slice) -> None:
    parts = variants.parts(NAME, variant)
    n_tokens = sum(len(part.token_ids) for part in parts)
    tokens = range(n_tokens)[cut]
    filled = torch.zeros(parts[0].n_layers, n_tokens, dtype=torch.int64)
    layers: list[int] = []
    for step in steps(parts, tokens):
        for span in step.spans():
            layers.append(span.layer)
            filled[span.layer, span.start : span.stop] += 1
            for side in ("keys", "values"):
                expected = whole(variants, variant, span.layer, side)[:, span.start : span.stop]
                assert torch.equal(getattr(span, side), expected)
    assert layers == sorted(layers)
    assert filled[:, tokens.start : tokens.stop].eq(1).all()
    assert filled.sum() == parts[0].n_layers * len(tokens)


def test_lost_tokens_are_refused(variants: LocalStore) -> None:
    with pytest.raises(MismatchError, match="lost tokens"):
        steps(variants.parts(NAME, "streaming-llm"), range(10))


def test_parts_that_do_not_follow_each_other(variants: LocalStore) -> None:
    first, second = variants.parts(NAME)
    with pytest.raises(MismatchError):
        steps([second, first], range(10))


def test_every_decoder_is_warm(variants: LocalStore) -> None:
    assert sorted(warm_up(variants, None)) == ["cachegen", "kivi", "raw"]
    assert warm_up(variants, "kivi") == ["kivi"]
    assert warm_up(variants, "missing") == []


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "tokens", [range(5), range(100, 1500), range(3000), range(1024, 5000), range(2047, 2049)]
)
def test_tokens_are_split_into_whole_chunks(tokens: range, pieces: int) -> None:
    parts = split(tokens, pieces)
    assert [token for part in parts for token in part] == list(tokens)
    assert 1 <= len(parts) <= pieces
    assert all(part.start % CHUNK == 0 for part in parts[1:])
    if len(tokens) >= 2 * CHUNK and pieces > 1:
        assert len(parts) > 1


def test_split_steps_give_the_same_values(variants: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 8)
    parts = variants.parts(NAME, "cachegen")
    n_tokens = sum(len(part.token_ids) for part in parts)
    found = steps(parts, range(n_tokens), threads=64)
    assert len(found) > len(steps(parts, range(n_tokens)))
    for step in found:
        for span in step.spans():
            assert torch.equal(
                span.keys, whole(variants, "cachegen", span.layer, "keys")[:, span.start : span.stop]
            )
