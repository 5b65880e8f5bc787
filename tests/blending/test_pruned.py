"""Pruned documents among others: the tokens that they keep, moved as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import kvtool
from kvtool.blending.blend import BlendOptions, blend
from kvtool.blending.cache import BlendedCache
from kvtool.blending.layout import Cached, Text
from kvtool.blending.pruned import joining_nbytes
from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.batching.generate_many import logits_after
from kvtool.engines.ragged import RaggedLayer, UniformLayer
from kvtool.engines.transformers import feed
from kvtool.errors import UsageError
from kvtool.model.chat_template import document_tokens
from kvtool.store.local import LocalStore
from tests.pruned import hiding

QUESTION = list(b"How many ships are in the harbour?")
A, B = Cached("a.txt", "pruned"), Cached("b.txt", "pruned")


@pytest.fixture(scope="module", params=["across", "tokens", "latent"])
def case(
    request: pytest.FixtureRequest, prefill_texts: Callable[..., LocalStore]
) -> tuple[kvtool.Model, LocalStore, type]:
    """Heads that hold different tokens, the same ones, and one head of latents."""
    is_latent = request.param == "latent"
    model = request.getfixturevalue("latent" if is_latent else "lively")
    store = prefill_texts(model)
    heads = "tokens" if is_latent else request.param
    kvtool.compress(store, recipe="keydiff", name="pruned", keep=0.4, heads=heads)
    return model, store, RaggedLayer if heads == "across" else UniformLayer


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def held_places(cache: BlendedCache) -> list[torch.Tensor]:
    """Which tokens each layer holds, bool [H, N]."""
    masks = []
    for layer in cache.layers:
        rows = (
            [layer.packed.places[head] for head in layer.packed.heads]
            if isinstance(layer, RaggedLayer)
            else [layer.columns] * layer.keys.shape[1]
        )
        mask = torch.zeros(len(rows), cache.get_seq_length(), dtype=torch.bool)
        for row, places in zip(mask, rows, strict=True):
            row[places.long()] = True
        masks.append(mask)
    return masks


def test_kept_tokens_are_moved_as_they_are(case: tuple[kvtool.Model, LocalStore, type]) -> None:
    """As a dense blend answers that hides the other tokens; a document that was not pruned is whole."""
    model, store, kind = case
    parts = [Cached("c@home.txt"), A, B]
    cache = blend(store, parts, model, recompute=0)
    assert all(isinstance(layer, kind) for layer in cache.layers)
    assert cache.recomputed == 0
    kept = held_places(cache)
    assert 0.4 < float(torch.cat(kept).float().mean()) < 0.9
    whole = blend(store, [part.name for part in parts], model, recompute=0)
    with hiding(model, kept):
        expected = logits_after(model, whole, QUESTION)
    assert near(logits_after(model, cache, QUESTION), expected)
    assert not near(expected, logits_after(model, whole, QUESTION))
    cache.fit(0)
    assert joining_nbytes(cache.layout) == 2 * cache.nbytes < 2 * whole.nbytes


def test_text_between_them_is_computed_after_what_stands_before(
    case: tuple[kvtool.Model, LocalStore, type],
) -> None:
    model, store, _ = case
    cache = blend(store, [A, Text("\n\nAnd then\n"), B], model, recompute=0)
    ids = document_tokens(model, "\n\nAnd then\n")
    assert cache.recomputed == len(ids)
    assert joining_nbytes(cache.layout) == 2 * cache.nbytes
    before = store.load("a.txt", model, variant="pruned")
    with cache_attention(model, before):
        feed(model, ids, before)
    cache.crop(before.get_seq_length() - cache.get_seq_length())
    assert near(logits_after(model, cache, QUESTION), logits_after(model, before, QUESTION))


def test_alone_under_another_prefix_and_as_a_part_of_a_prefill(
    case: tuple[kvtool.Model, LocalStore, type],
) -> None:
    model, store, _ = case
    alone = blend(store, A, model)
    loaded = store.load("a.txt", model, variant="pruned")
    assert torch.equal(logits_after(model, alone, QUESTION), logits_after(model, loaded, QUESTION))
    full = blend(store, [A, B], model, recompute=1)
    assert full.holds_all
    text_first = blend(store, [Text("Now: "), A], model, recompute=0)
    assert text_first.get_seq_length() == loaded.get_seq_length() + len("Now: ")


@pytest.mark.parametrize("options", [BlendOptions(), BlendOptions(policy="ape")], ids=lambda o: o.policy)
def test_what_recomputes_is_refused(
    case: tuple[kvtool.Model, LocalStore, type], options: BlendOptions
) -> None:
    model, store, _ = case
    setting = "policy 'ape'" if options.policy == "ape" else "recompute 0.15"
    message = rf"^b.txt: was pruned.*what {setting} does; take recompute 0"
    with pytest.raises(UsageError, match=message):
        blend(store, ["a.txt", B], model, recompute=options.recompute, policy=options.policy)
    with pytest.raises(UsageError, match="taking out a segment"):
        blend(store, ["a.txt", B], model, recompute=0).save(store, "both", model)
