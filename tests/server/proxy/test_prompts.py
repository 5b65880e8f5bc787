"""The token ids that the proxy makes are those of kvtool.ask and of kvtool's own server, and its blends begin them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import ask as module
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached
from kvtool.blending.save import save_blend
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.lookup import Lookup
from kvtool.model.conversation import Message
from kvtool.server.http.errors import ApiError
from kvtool.server.proxy.prompts import Prompts
from kvtool.server.runtime.request import ConversationPrompt, TextPrompt, TokenPrompt
from kvtool.server.runtime.service import Service
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.local import LocalStore
from tests.server.asking import QUESTION, THREE
from tests.server.runtime.test_request_plan import planned

ASKED = ConversationPrompt([Message("user", QUESTION)], {})


@pytest.mark.parametrize(
    "prompt",
    [
        ASKED,
        ConversationPrompt([Message("system", "Be brief."), Message("user", QUESTION)], {}),
        ConversationPrompt([Message("user", "a"), Message("assistant", "b"), Message("user", "c")], {}),
        TextPrompt(QUESTION),
        TokenPrompt([5, 6, 7]),
    ],
    ids=["question", "system", "turns", "text", "tokens"],
)
@pytest.mark.parametrize("names", [THREE[:1], THREE, [THREE[2], THREE[0], THREE[2]]], ids=len)
def test_they_are_those_of_the_server(service: Service, prompts: Prompts, prompt: Any, names: Any) -> None:
    plan = planned(service, *names, prompt=prompt)
    made = prompts.after(names, prompt)
    assert made.token_ids == plan.token_ids
    assert made.document_tokens == plan.document_tokens
    assert made.blend is None


def test_they_are_those_of_ask(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    generate = module.generate

    def noted(model: Any, ids: Any, *args: Any, **options: Any) -> Any:
        asked.append(ids)
        return generate(model, ids, *args, **options)

    monkeypatch.setattr(module, "generate", noted)
    for names in (THREE[:1], THREE[1:]):
        module.ask(QUESTION, names, served, documents, max_tokens=1)
        assert prompts.after(names, ASKED).token_ids == asked[-1]


def test_only_the_tokenizer_is_loaded(
    documents: LocalStore, served_dir: Path, prompts: Prompts, tmp_path: Path
) -> None:
    """Neither weights nor a dtype: the engine has its own."""
    directory = shutil.copytree(served_dir, tmp_path / "tokenizer")
    for file in directory.glob("*.safetensors"):
        file.unlink()
    alone = Prompts(documents, kvtool.load_model(directory, device="cpu", dtype="bfloat16"))
    assert alone.after(THREE, ASKED) == prompts.after(THREE, ASKED)


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_is_refused(
    documents: LocalStore, served_dir: Path, tmp_path: Path, file: str
) -> None:
    directory = shutil.copytree(served_dir, tmp_path / "other")
    text = (directory / file).read_text()
    (directory / file).write_text(text.replace("<|assistant|>", "<|helper|>"))
    with pytest.raises(ApiError, match="documents: they were prefilled by another model"):
        Prompts(documents, kvtool.load_model(directory, device="cpu")).after(THREE, ASKED)


def test_missing_documents_and_empty_questions_are_named(prompts: Prompts) -> None:
    with pytest.raises(kvtool.KvtoolError, match="is not in the store"):
        prompts.after(["docs/d.txt"], ASKED)
    with pytest.raises(DocumentMissing, match="is no name of a document"):
        prompts.after(["../kv-store"], ASKED)
    with pytest.raises(ApiError, match="prompt: expected at least one token"):
        prompts.after(THREE, TextPrompt(""))


def blend_of(prompts: Prompts) -> str | None:
    blend = prompts.after(THREE, ASKED).blend
    return blend.name if blend else None


def test_the_blend_of_exactly_these_documents_is_found(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    a, b, c = THREE
    save_blend("ab", [a, b], served, documents)
    save_blend("lines", [a, b], served, documents, separator="\n")
    save_blend("cut", [Cached(a, segment=0), b], served, documents)
    made = prompts.after([a, b], ASKED)
    assert made.blend
    assert (made.blend.name, made.blend.identity) == ("ab", documents["ab"].segments[0].identity)
    stored = documents.load("ab", served).token_ids.tolist()
    assert made.token_ids[: len(stored)] == stored
    assert len(stored) == made.document_tokens
    for names in ([b, a], [a], [a, b, c], [a, b, b], [c, "ab"], [f"{a}@kivi", b]):
        if "@" in names[0]:
            kvtool.compress(documents, recipe="kivi", bits=4)
        assert prompts.after(names, ASKED).blend is None
    system = ConversationPrompt([Message("system", "Be brief."), Message("user", QUESTION)], {})
    assert prompts.after([a, b], system).blend is None


def test_the_connector_finds_what_the_proxy_names(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model, served_dir: Path
) -> None:
    save_blend("abc", THREE, served, documents)
    made = prompts.after(THREE, ASKED)
    assert made.blend
    lookup = Lookup(documents, EngineModel.at(served_dir, dtype="float32"))
    lookup.follow(10.0)
    named, longest = lookup.named(made.blend.name, made.token_ids), lookup.longest(made.token_ids)
    assert named
    assert longest
    assert (named.document, named.n_tokens) == ("abc", made.document_tokens)
    # Without the name, a blend is not found: it is no prefill of its tokens.
    assert longest.document == THREE[0]
    assert longest.n_tokens < named.n_tokens


def test_of_several_the_one_with_most_recomputed_is_taken(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    for name, share in (("some", 0.3), ("much", 0.6), ("little", 0.1)):
        save_blend(name, THREE, served, documents, options=BlendOptions(share))
    assert blend_of(prompts) == "much"
    documents.remove("much")
    assert blend_of(prompts) == "some"


def test_one_that_is_out_of_date_or_broken_is_not_taken(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    save_blend("abc", THREE, served, documents)
    assert blend_of(prompts) == "abc"
    before = Path(THREE[0]).read_text()
    Path(THREE[0]).write_text("Eight ships.")
    kvtool.prefill(["docs"], model=served, store=documents)
    assert blend_of(prompts) is None
    save_blend("abc", THREE, served, documents)
    assert blend_of(prompts) == "abc"
    Path(THREE[0]).write_text(before)
    documents.path_of(documents["abc"].segments[0].variants["raw"]).unlink()
    assert blend_of(prompts) is None


def test_a_blend_that_is_named_first_is_loaded_by_its_own_name(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    a, b, c = THREE
    save_blend("ab", [a, b], served, documents)
    for names in (["ab"], ["ab", c]):
        blend = prompts.after(names, ASKED).blend
        assert blend
        assert (blend.name, blend.identity) == ("ab", documents["ab"].segments[0].identity)
    save_blend("abc", ["ab", c], served, documents)
    assert (found := prompts.after(["ab", c], ASKED).blend)
    assert found.name == "abc"


def test_an_old_blend_is_said_and_not_loaded(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model, caplog: pytest.LogCaptureFixture
) -> None:
    """By its own name, whose text the request asks for, and by way of another blend."""
    a, b, c = THREE
    save_blend("ab", [a, b], served, documents)
    save_blend("abc", ["ab", c], served, documents)
    assert prompts.after(["ab"], ASKED).blend
    assert not caplog.messages
    Path(a).write_text("Eight ships.")
    kvtool.prefill(["docs"], model=served, store=documents)
    for _ in range(2):
        for names in (["ab"], ["ab", c], ["abc"]):
            assert prompts.after(names, ASKED).blend is None
    assert caplog.messages == [
        f"ab: is a blend, and {a} has changed since; kvtool blend makes it again",
        "abc: is a blend, and ab is out of date itself; kvtool blend makes it again",
    ]


def test_tokens_are_those_of_any_variant(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    before = prompts.after(THREE, ASKED)
    kvtool.compress(documents, recipe="kivi", bits=4)
    for name in THREE:
        documents.commit(documents[name].with_variants(["kivi"]))
    assert prompts.after(THREE, ASKED) == before


def test_a_compressed_blend_without_its_raw_cache_is_found(
    prompts: Prompts, documents: LocalStore, served: kvtool.Model
) -> None:
    save_blend("abc", THREE, served, documents)
    kvtool.compress(documents, ["abc"], recipe="kivi", bits=4)
    documents.commit(documents["abc"].with_variants(["kivi"]))
    assert blend_of(prompts) == "abc"
