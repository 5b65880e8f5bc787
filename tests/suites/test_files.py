"""Files as people have them: none of their text is lost in a store, and answers from the cache are those without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvtool
from kvtool.engines.batching.generate_many import logits_after
from kvtool.model.chat_template import document_tokens
from kvtool.prefilling.report import Report
from kvtool.store.local import LocalStore
from tests.suites.files import made

FILES = {f"docs/{file.name}": file for file in made()}
BOUND = 1e-4
"""Of the logits, relative to the largest: another order of summation."""


class Prefilled(NamedTuple):
    store: LocalStore
    report: Report
    model: kvtool.Model


@pytest.fixture(scope="module")
def prefilled(model_of: object, tmp_path_factory: pytest.TempPathFactory) -> Prefilled:
    """All of the files in one run, and besides them paths that are no documents."""
    root = tmp_path_factory.mktemp("files")
    for name, file in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file.data)
    (root / "docs/gone.md").symlink_to("nothing")
    (root / "docs/loop.md").symlink_to("loop.md")
    (root / os.fsdecode(b"docs/caf\xe9-latin.md")).write_text("text")
    os.mkfifo(root / "docs/pipe.md")
    model, store = model_of("gemma3"), LocalStore(root / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return Prefilled(store, kvtool.prefill(["docs"], model=model, store=store), model)


def text_of(store: LocalStore, name: str, model: kvtool.Model) -> str:
    ids = [store.read(name, segment=n).token_ids for n in range(len(store[name].segments))]
    return model.tokenizer.decode(torch.cat(ids), clean_up_tokenization_spaces=False)


def test_every_file_is_a_document_and_what_is_none_is_named(prefilled: Prefilled) -> None:
    assert set(prefilled.store) == set(FILES)
    problems = "\n".join(map(str, prefilled.report.problems))
    for name in ("gone.md", "loop.md", "latin.md"):
        assert name in problems
    assert len(prefilled.report.problems) == 3
    assert prefilled.report.passed_over == {"special": 1}
    assert len(FILES) >= 128


def test_text_is_whole(prefilled: Prefilled) -> None:
    for name, file in FILES.items():
        assert text_of(prefilled.store, name, prefilled.model) == file.text, name


@torch.no_grad()
def test_the_cache_gives_what_a_plain_pass_gives(prefilled: Prefilled) -> None:
    store, _, model = prefilled
    question = document_tokens(model, "\n\nAnd then?")
    for name in store:
        for segment in range(len(store[name].segments)):
            cache = store.load(name, model, segment=segment)
            ids = torch.tensor([[*cache.token_ids.tolist(), *question]])
            plain = model.model(ids, use_cache=False).logits[0, -len(question) :]
            cached = logits_after(model, cache, question)
            assert (cached - plain).abs().max() < BOUND * plain.abs().max(), (name, segment)
            assert torch.equal(cached.argmax(-1), plain.argmax(-1)), (name, segment)


def test_warnings_name_files_that_are_not_surely_read(prefilled: Prefilled) -> None:
    assert [str(warning) for warning in prefilled.report.warnings] == []


@settings(max_examples=5)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=100), min_size=5, max_size=10)
)
def test_any_text_is_whole(
    texts: list[str], model_of: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root, model = tmp_path_factory.mktemp("texts"), model_of("gemma3")
    files = {
        f"{n}.txt": text.replace("\r\n", "\n").replace("\r", "\n")
        for n, text in enumerate(texts)
        if not text.isspace() and "\0" not in text and not text.startswith("\ufeff")
    }
    for name, text in files.items():
        (root / name).write_bytes(text.encode())
    store = LocalStore(root / "store")
    kvtool.prefill(sorted(root.glob("*.txt")), model=model, store=store)
    assert files.keys() == {Path(name).name for name in store} or not files
    for name in store:
        assert text_of(store, name, model) == files[Path(name).name]
