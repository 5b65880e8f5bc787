"""Which caches are found for which engine, and how a store that fails is followed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import kvtool
from kvtool.connectors.block_index import BlockIndex
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.lookup import Lookup, Lookups
from kvtool.connectors.usable import Usable
from kvtool.store import prefix_index
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW

NAME = "docs/b.md"


def tokens(store: LocalStore, name: str = NAME) -> list[int]:
    return [int(token) for part in store.parts(name) for token in part.token_ids]


@pytest.fixture
def lookup(store: LocalStore, tiny_dir: Path) -> Lookup:
    made = Lookup(store, EngineModel.at(tiny_dir, dtype="float32"))
    made.follow(10)
    return made


def test_what_is_found_is_opened_by_its_digest(lookup: Lookup, store: LocalStore) -> None:
    ids = tokens(store)
    found = lookup.longest([*ids, 1, 2])
    assert found is not None
    assert (found.document, found.n_tokens) == (NAME, len(ids))
    # Another document has taken its name since.
    store.remove(NAME)
    assert [part.digest for part in found.open(store)] == [variant.artifact for variant in found.artifacts]


def test_what_failed_is_avoided_for_a_while(
    lookup: Lookup, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokens(store)
    found = lookup.longest(ids)
    assert found is not None
    lookup.avoid(found)
    assert lookup.longest(ids) is None
    assert lookup.named(NAME, ids) is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert lookup.longest(ids) == found


def test_a_named_document_must_be_all_of_the_beginning(lookup: Lookup, store: LocalStore) -> None:
    ids = tokens(store)
    assert lookup.named(NAME, [*ids, 5]) is not None
    assert lookup.named(NAME, ids[:-1]) is None
    assert lookup.named(NAME, [*ids[:-1], 271 - ids[-1]]) is None
    assert lookup.named("missing", ids) is None


def test_a_manifest_that_is_wrong_about_its_artifacts(
    store: LocalStore, tiny_dir: Path, make_model: Callable[..., Path], corpus: Path
) -> None:
    other = kvtool.load_model(make_model(corpus / "other-model", seed=5), device="cpu")
    others = LocalStore(corpus / "others")
    kvtool.prefill([NAME], model=other, store=others)
    entry, claimed = others[NAME], store[NAME].model
    shutil.copytree(others.root / "artifacts", store.root / "artifacts", dirs_exist_ok=True)
    with store.writing():
        store.commit(replace(entry, model=claimed))
    model = EngineModel.at(tiny_dir, dtype="float32")
    made = Lookup(store, model)
    made.follow(10)
    assert made.longest(tokens(others)) is None or made.longest(tokens(others)).document != NAME  # type: ignore[union-attr]
    assert made.named(NAME, tokens(others)) is None
    index = BlockIndex(
        store, Usable(store, model), lambda ids: [tuple(ids[: n + 4]) for n in range(0, len(ids), 4)], 4
    )
    index.follow()
    while not index.is_complete:
        time.sleep(0.01)
    whole = tuple(tokens(others)[: len(tokens(others)) // 4 * 4])
    assert index.find([whole], lambda source: False) == [None]


def test_other_variants_are_chosen_by_name_or_size(store: LocalStore, tiny_dir: Path) -> None:
    kvtool.compress(store, NAME, recipe="kivi", bits=4)
    kvtool.compress(store, NAME, recipe="streaming-llm", keep=0.5)
    model = EngineModel.at(tiny_dir, dtype="float32")
    document = store[NAME]
    (segment,) = document.segments
    assert Usable(store, model)(document, segment) == RAW
    assert Usable(store, model, "kivi")(document, segment) == "kivi"
    assert Usable(store, model, "streaming-llm")(document, segment) is None
    without = {name: variant for name, variant in segment.variants.items() if name != RAW}
    assert (
        Usable(store, model)(
            replace(document, segments=(replace(segment, variants=without),)),
            replace(segment, variants=without),
        )
        == "kivi"
    )


def test_an_adapter_whose_files_have_changed(
    lookup: Lookup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lookups = Lookups(lookup)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    first = lookups.of(adapter)
    assert first is not None
    assert lookups.of(adapter) is first is not lookups.of(None)
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    assert lookups.of(adapter) is None
    assert lookups.of(adapter) is None
    assert caplog.text.count("have changed") == 1


def test_a_store_that_fails_is_asked_now_and_then(
    lookup: Lookup, store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefix_index, "FRESH", 0.2)
    ids = tokens(store)
    store.root.rename(store.root.with_name("away"))
    monkeypatch.setattr(type(store), "__iter__", lambda self: (_ for _ in ()).throw(OSError("gone")))
    until = time.monotonic() + 1
    asked = 0
    while time.monotonic() < until:
        assert lookup.longest(ids) is not None
        asked += 1
    assert asked > 100
    assert caplog.text.count("gone") == 1
