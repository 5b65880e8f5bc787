"""A round that fails ends those who were in it, and leaves nothing of theirs in a cache that others go on to use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvtool
from kvtool import Store
from kvtool.server.sampling import Sampler, Sampling
from kvtool.server.scheduler import Generation, Scheduler


def ended(scheduler: Scheduler, cache: kvtool.DocumentCache, ids: list[int]) -> tuple[list[int], Any]:
    said: list[int] = []
    ends: list[Any] = []
    held = len(cache.token_ids)
    greedy = Sampling(temperature=0)
    one = Generation(cache, ids, held, 6, greedy, lambda picked: said.append(picked.token), ends.append)
    scheduler.submit(one)
    scheduler.call(lambda: None).result()
    while not ends:
        pass
    return said, ends[0]


@pytest.mark.parametrize("where", ["the model", "sampling"])
def test_a_cache_is_as_it_was(
    served: kvtool.Model, documents: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    cache = documents.load("docs/a.txt", served)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    scheduler = Scheduler(served)
    scheduler.start()
    ids = torch.arange(40, 60).tolist()
    right = ended(scheduler, cache, ids)
    assert right[1] in ("length", "stop")

    def fail(*_: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        if where == "the model":
            patch.setattr("kvtool.server.scheduler.feed_together", fail)
        else:
            patch.setattr(Sampler, "pick", fail)
        assert isinstance(ended(scheduler, cache, ids)[1], RuntimeError)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert ended(scheduler, cache, ids) == right
    scheduler.stop()


def test_room_for_long_prompts_is_given_back(served: kvtool.Model, documents: Store) -> None:
    cache = documents.load("docs/a.txt", served)
    before = room(cache)
    scheduler = Scheduler(served)
    scheduler.start()
    _, reason = ended(scheduler, cache, [*range(40, 90)] * 8)
    scheduler.stop()
    assert reason in ("length", "stop")
    assert room(cache) == before


def room(cache: kvtool.DocumentCache) -> int:
    return sum(layer.keys.untyped_storage().nbytes() for layer in cache.layers)
