"""Rows after several caches in one pass, against each cache in passes of its own; and rows that come and go."""

from __future__ import annotations

import pytest
import torch

import kvtool
from kvtool.engines import transformers as engine
from kvtool.engines.batching.multi_cache import feed_batches, supports_multi_cache
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.cache import ROOM

BOUND = 1e-4
"""Of the logits, relative to the largest: another order of summation."""

APART = {"deepseek-v3"}
"""Makes its keys from what the cache holds."""


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < BOUND * b.abs().max())


def rows_after(model: kvtool.Model, n_tokens: int) -> SequenceBatch:
    cache = engine.new_cache(model, n_tokens)
    engine.feed(model, torch.randint(0, 256, (n_tokens,)).tolist(), cache)
    return SequenceBatch(model, cache)


@pytest.fixture
def some() -> list[list[int]]:
    return [torch.randint(0, 256, (size,)).tolist() for size in (30, 7, 1, 9)]


@torch.no_grad()
def test_several_caches_in_one_pass(family: kvtool.Model, some: list[list[int]]) -> None:
    if family.config.model_type.replace("_", "-") in APART:
        assert not supports_multi_cache(family)
        return
    assert supports_multi_cache(family)
    sizes, found = (50, 3, 24), []
    for together in (False, True):
        torch.manual_seed(1)
        rows = [rows_after(family, size) for size in sizes]
        rows[2].join(5, seen=20)
        first_row = rows[0], [(0, some[0]), (1, some[1])]
        feeds = [first_row, (rows[1], [(0, some[2])]), (rows[2], [(5, some[3])])]
        first = feed_batches(family, feeds) if together else [one.feed(fed) for one, fed in feeds]
        more = [(rows[0], [(1, [9])]), (rows[2], [(5, [8]), (6, [7])])]
        then = feed_batches(family, more) if together else [one.feed(fed) for one, fed in more]
        for one, size in zip(rows, sizes, strict=True):
            one.close()
            assert one.cache.get_seq_length() == size
        found.append(torch.cat([*first, *then]))
    assert near(found[1], found[0])


@torch.no_grad()
def test_rows_come_and_go(family: kvtool.Model, some: list[list[int]]) -> None:
    """A row that leaves is given up, and those that stay do not notice."""
    rows = rows_after(family, 40)
    alone = SequenceBatch(family, rows.cache)
    expected = [alone.feed([(0, ids)]) for ids in ([*some[0]], [3], [4])]
    alone.close()
    rows.feed([(7, [1] * (ROOM + 20)), (0, some[0])])
    rows.leave(7)
    assert rows.cache.get_seq_length() == 40 + len(some[0])
    found = rows.feed([(8, [5, 6]), (0, [3])])[1:]
    rows.leave(8)
    assert near(found, expected[1])
    assert near(rows.feed([(0, [4])]), expected[2])
    rows.leave(0)
    assert rows.cache.get_seq_length() == 40
    assert all(layer.get_seq_length() == 40 for layer in rows.cache.layers)


@torch.no_grad()
def test_a_row_may_see_a_part_of_the_cache(family: kvtool.Model, some: list[list[int]]) -> None:
    rows = rows_after(family, 40)
    rows.join(3, seen=25)
    found = rows.feed([(2, some[1]), (3, some[3])])[1:]
    rows.close()
    rows.cache.crop(-15)
    assert near(found, SequenceBatch(family, rows.cache).feed([(0, some[3])]))


@torch.no_grad()
def test_a_pass_that_breaks_off_leaves_the_cache_as_it_was(tiny: kvtool.Model) -> None:
    rows = rows_after(tiny, 10)
    before = rows.feed([(0, [5])])
    rows.close()
    with pytest.raises(IndexError):
        rows.feed([(0, [10_000])])
    rows.close()
    assert [layer.get_seq_length() for layer in rows.cache.layers] == [10, 10, 10]
    assert torch.equal(rows.feed([(0, [5])]), before)
