"""One thread runs the model. A round that fails ends those who were in it, and leaves nothing of theirs in a cache that
others go on to use."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool.engines.batching.generate_many import end_tokens
from kvtool.engines.generate import generate
from kvtool.engines.sampling import GREEDY
from kvtool.engines.transformers import new_cache
from kvtool.server.app import create_app
from kvtool.server.runtime import scheduler as scheduler_module
from kvtool.server.runtime.sampling import SampledToken, Sampler
from kvtool.server.runtime.scheduler import Generation, Scheduler
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, chat
from tests.server.cached_contents.cached import make, ready


def ended(scheduler: Scheduler, cache: kvtool.DocumentCache, ids: list[int]) -> tuple[list[int], Any]:
    tokens: list[int] = []
    ends: list[Any] = []
    held = len(cache.token_ids)
    sampler = Sampler(GREEDY, [*cache.token_ids.tolist(), *ids], end_tokens(scheduler.model))
    generation = Generation(
        cache, ids, held, 6, sampler, lambda sampled: tokens.append(sampled.token), ends.append
    )
    scheduler.submit(generation)
    scheduler.call(lambda: None).result()
    while not ends:
        pass
    return tokens, ends[0]


@pytest.mark.parametrize("where", ["the model", "sampling"])
def test_a_cache_is_as_it_was(
    served: kvtool.Model, documents: LocalStore, monkeypatch: pytest.MonkeyPatch, where: str
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
            patch.setattr("kvtool.server.runtime.scheduler.feed_batches", fail)
        else:
            patch.setattr(Sampler, "sample", fail)
        assert isinstance(ended(scheduler, cache, ids)[1], RuntimeError)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert ended(scheduler, cache, ids) == right
    scheduler.stop()


def test_room_for_long_prompts_is_given_back(served: kvtool.Model, documents: LocalStore) -> None:
    cache = documents.load("docs/a.txt", served)
    before = room(cache)
    scheduler = Scheduler(served)
    scheduler.start()
    _, reason = ended(scheduler, cache, [*range(40, 90)] * 8)
    scheduler.stop()
    assert reason in ("length", "stop")
    assert room(cache) == before


def test_greedy_means_what_it_means_to_ask(
    served: kvtool.Model, documents: LocalStore, tmp_path: Path
) -> None:
    directory = tmp_path / "penalties"
    shutil.copytree(served.directory, directory)
    path = directory / "generation_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.8, "use_cache": False})
    )
    model = kvtool.load_model(directory, device="cpu")
    cache, ids = documents.load("docs/a.txt", model), list(range(40, 60))
    scheduler = Scheduler(model)
    scheduler.start()
    tokens, _ = ended(scheduler, cache, ids)
    scheduler.stop()
    prompt = [*cache.token_ids.tolist(), *ids]
    for asked, loaded in ((model, cache), (model, None), (served, None)):
        assert generate(asked, prompt, loaded, max_tokens=6)[: len(tokens)] == tokens


def test_a_prompt_that_is_scored_keeps_no_other_waiting(
    served: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int]] = []
    feed_batches = scheduler_module.feed_batches

    def watched(model: kvtool.Model, feeds: Any, every: Any) -> Any:
        passes.append([len(ids) for _, feed in feeds for _, ids in feed])
        return feed_batches(model, feeds, every)

    monkeypatch.setattr(scheduler_module, "feed_batches", watched)
    scheduler, ends, scores = Scheduler(served), list[Any](), list[SampledToken]()
    scheduler.warm_up()
    passes.clear()
    for size, is_scored in ((200, True), (100, True), (30, False)):
        ids = [n % 250 for n in range(size)]
        sampler, cache = Sampler(GREEDY, ids, ()), new_cache(served, size)
        generation = Generation(cache, ids, 0, 1, sampler, lambda _: None, ends.append)
        generation.on_scores = scores.extend if is_scored else None
        scheduler.submit(generation)
    scheduler.start()
    scheduler.stop()
    assert passes == [[128, 30], [72, 56], [44]]
    assert len(scores) == 300
    assert ends == ["length"] * 3


def room(cache: kvtool.DocumentCache) -> int:
    return sum(layer.keys.untyped_storage().nbytes() for layer in cache.layers)


def test_a_round_that_fails_ends_no_other(client: TestClient, service: Service) -> None:
    scheduler = service.scheduler
    broken = scheduler._leave_cancelled
    scheduler._leave_cancelled = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    chat(client, status=500)
    scheduler._leave_cancelled = broken  # type: ignore[method-assign]
    chat(client)


def test_a_token_that_cannot_be_chosen_ends_no_other(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.sample

    def fail(sampler: Sampler, logits: torch.Tensor) -> SampledToken:
        return choose(sampler, logits / 0 if sampler.sampling.seed == 13 else logits)

    monkeypatch.setattr(Sampler, "sample", fail)
    more: dict[str, Any] = {"documents": ["docs/a.txt"], "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(chat, client, **more)
        while not service.scheduler.running:
            pass
        chat(client, status=500, documents=["docs/a.txt"], temperature=1, seed=13)
        assert other.result()["usage"]["completion_tokens"] == 400


def test_no_other_thread_runs_the_model(
    served_dir: Path, documents: LocalStore, texts: dict[str, str]
) -> None:
    """A pass replaces the model's attention while it lasts, so that another one beside it would fail or be wrong."""
    model = kvtool.load_model(served_dir, device="cpu")
    service = Service.over(documents.root, model, LIMITS)
    threads = set()
    with TestClient(create_app(service)) as client:
        model.model.base_model.register_forward_pre_hook(
            lambda *_: threads.add(threading.current_thread().name)
        )
        content = make(client, texts["docs/a.txt"] * 2)
        ready(client, content)
        for names in ([content["name"]], ["docs/a.txt", "docs/b.txt"]):
            chat(client, documents=names)
    assert threads == {"model"}
