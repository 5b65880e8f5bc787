"""Layers that read pages when they are first attended to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtool.codecs import LayerKV
from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.paged import PagedLayer, choose, upper_bounds
from tests.families import model_of, tiny
from tests.pruned import dense_cache

__all__ = ["model_of", "tiny"]


@given(
    n_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    n_pages=st.integers(1, 4),
    page=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_no_score_is_above_the_bound_of_its_page(
    n_heads: int, group: int, n_pages: int, page: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn(n_pages, page, n_heads, 6, generator=random)
    queries = torch.randn(n_heads * group, 3, 6, generator=random)
    bounds = upper_bounds(queries, keys.amin(1), keys.amax(1))
    for head in range(n_heads * group):
        scores = torch.einsum("sd,ptd->spt", queries[head], keys[:, :, head // group])
        assert (scores <= bounds[head][..., None] + 1e-5).all()
    if page == 1:
        torch.testing.assert_close(bounds[head], scores[..., 0])


def test_pages_are_chosen_by_their_share_of_all_heads_and_queries_attention() -> None:
    scores = torch.zeros(2, 3, 8)
    scores[0, :2, 6] = 9.0
    # However large one score is, it has one query's say.
    scores[1, 2, 3] = 100.0
    assert choose(scores, 0.01) == [6]
    assert choose(scores, 0.25) == [3, 6]
    assert choose(scores, 1.0) == list(range(8))


class Pages:
    """Pages of two tokens of a cache that is whole."""

    def __init__(self, cache: DocumentCache) -> None:
        self.cache = cache
        self.read: list[tuple[int, list[int]]] = []

    def bounds(self, layer: int) -> tuple[Tensor, Tensor]:
        pages = self.cache.layers[layer].keys[0].transpose(0, 1).unflatten(0, (-1, 2))
        return pages.amin(1), pages.amax(1)

    def pages(self, layer: int, pages: Sequence[int]) -> LayerKV:
        self.read.append((layer, list(pages)))
        tokens = torch.tensor([token for page in pages for token in (2 * page, 2 * page + 1)])
        whole = self.cache.layers[layer]
        return LayerKV(whole.keys[0][:, tokens], whole.values[0][:, tokens], tokens)


def run(model: object, cache: DocumentCache, ids: Sequence[int]) -> Tensor:
    with torch.no_grad(), cache_attention(model, cache):  # type: ignore[arg-type]
        return model.model(torch.tensor([ids]), past_key_values=cache).logits  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def whole(tiny: object) -> DocumentCache:
    return dense_cache(tiny, list(range(40, 60)))  # type: ignore[arg-type]


def test_each_layer_reads_once_and_keeps_the_order(tiny: object, whole: DocumentCache) -> None:
    source = Pages(whole)
    cache = DocumentCache(len(whole.layers), token_ids=whole.token_ids)
    for index, layer in enumerate(whole.layers):
        paged = PagedLayer(0, 20, index, source, 0.3)
        paged.allocate((2, 8), (2, 8), layer.keys.dtype, layer.keys.device)
        cache.layers[index] = paged
    run(tiny, cache, [7, 8, 9])
    run(tiny, cache, [10])
    assert [index for index, _ in source.read] == [0, 1, 2]
    for (_, pages), layer in zip(source.read, cache.layers, strict=True):
        assert len(pages) == 3
        places = [token for page in pages for token in (2 * page, 2 * page + 1)]
        assert layer.columns.tolist() == [*places, 20, 21, 22, 23]
        assert layer.get_seq_length() == 24
    cache.fit(0)
    assert cache.nbytes < whole.nbytes


def test_all_pages_give_what_the_whole_gives(tiny: object, whole: DocumentCache) -> None:
    cache = DocumentCache(len(whole.layers), token_ids=whole.token_ids)
    for index, layer in enumerate(whole.layers):
        paged = PagedLayer(0, 20, index, Pages(whole), 1.0)
        paged.allocate((2, 8), (2, 8), layer.keys.dtype, layer.keys.device)
        cache.layers[index] = paged
    paged_logits = run(tiny, cache, [7, 8, 9])
    torch.testing.assert_close(paged_logits, run(tiny, whole, [7, 8, 9]), rtol=1e-4, atol=1e-4)
