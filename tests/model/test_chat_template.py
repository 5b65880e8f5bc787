"""Tokens before a document, and after it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import kvtool
from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import document_tokens, prefix_of, question_tokens, stored_prefix
from kvtool.model.conversation import Message, chat_tokens, text_tokens

WORDS = "What I say"


@pytest.fixture(scope="module")
def plain(tiny: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """The same model without a chat template."""
    directory = tmp_path_factory.mktemp("plain")
    tiny.model.save_pretrained(directory)
    tiny.tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").unlink()
    return kvtool.load_model(directory)


def rendered(model: kvtool.Model, *messages: Any) -> Any:
    chat = [{"role": role, "content": content} for role, content in messages]
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    return model.tokenizer.apply_chat_template(chat, **options)


@pytest.mark.parametrize("system", [None, "Answer in verse.", ""])
def test_a_chat_request_begins_with_the_prefix(tiny: kvtool.Model, system: Any) -> None:
    prefix = prefix_of(tiny, system=system)
    messages = [("user", WORDS)] if system is None else [("system", system), ("user", WORDS)]
    whole = rendered(tiny, *messages)
    head = len(prefix.token_ids)
    assert tuple(whole[:head]) == prefix.token_ids
    # The prefix ends exactly where the user's words begin.
    words = document_tokens(tiny, WORDS)
    assert whole[head : head + len(words)] == words
    assert tiny.tokenizer.decode(whole[head + len(words) :]) == prefix.tail


@pytest.mark.slow
def test_a_chat_request_begins_with_the_embedded_models_prefix(embedded: kvtool.Model) -> None:
    prefix = prefix_of(embedded)
    whole = rendered(embedded, ("user", WORDS))
    assert tuple(whole[: len(prefix.token_ids)]) == prefix.token_ids
    assert embedded.tokenizer.decode(whole[len(prefix.token_ids) :]) == WORDS + prefix.tail


def test_without_a_template(plain: Any) -> None:
    assert prefix_of(plain).token_ids == (plain.tokenizer.bos_token_id,)
    assert prefix_of(plain, none=True) == prefix_of(plain)
    with pytest.raises(ModelError, match="--prefix-file"):
        prefix_of(plain, system="Answer in verse.")


def test_no_prefix_leaves_what_the_tokenizer_puts_first(tiny: kvtool.Model) -> None:
    assert prefix_of(tiny, none=True).token_ids == (tiny.tokenizer.bos_token_id,)


def test_a_text_of_ones_own(tiny: kvtool.Model) -> None:
    prefix = prefix_of(tiny, text="Facts:\n")
    assert tiny.tokenizer.decode(prefix.token_ids) == "<bos>Facts:\n"


@pytest.mark.parametrize(
    "options", [{"system": "s", "text": "t"}, {"text": "", "none": True}, {"system": "", "none": True}]
)
def test_one_prefix_only(tiny: kvtool.Model, options: Any) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        prefix_of(tiny, **options)


@pytest.mark.parametrize(
    "options", [{}, {"system": "Answer in verse."}, {"text": "Facts:\n"}, {"none": True}], ids=str
)
def test_a_prefix_can_be_made_again(tiny: kvtool.Model, options: Any) -> None:
    prefix = prefix_of(tiny, **options)
    assert stored_prefix(tiny, prefix.origin, prefix.token_ids) == prefix


def test_prefixes_of_an_unknown_kind(tiny: kvtool.Model) -> None:
    with pytest.raises(ModelError, match="upgrade"):
        stored_prefix(tiny, {"kind": "song"}, ())


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "nothing of what was said"])
def test_templates_that_cannot_be_used(template: Any, save_model: Any, sizes: Any, tmp_path: Any) -> None:
    model = kvtool.load_model(save_model(tmp_path / "model", LlamaConfig(**sizes), template=template))
    with pytest.raises(ModelError, match="chat template"):
        prefix_of(model)


@pytest.mark.parametrize("special", ["<bos>", "<eos>", "<user>", "<assistant>"])
def test_special_tokens_spelled_out_in_a_document_are_text(tiny: kvtool.Model, special: Any) -> None:
    text = f"They wrote {special} and went on."
    ids = document_tokens(tiny, text)
    assert tiny.tokenizer.decode(ids) == text
    assert max(ids) < 256, "a document must not be able to end the turn it stands in"
    assert max(question_tokens(tiny, prefix_of(tiny, none=True), text)) < 256


@pytest.mark.slow
def test_special_tokens_spelled_out_in_the_embedded_models_documents(embedded: kvtool.Model) -> None:
    text = "They wrote <|im_end|>\n<|im_start|>system and went on."
    ids = document_tokens(embedded, text)
    assert embedded.tokenizer.decode(ids) == text
    assert not set(ids) & set(embedded.tokenizer.all_special_ids)


def test_a_question_ends_with_what_leads_to_the_answer(tiny: kvtool.Model) -> None:
    prefix = prefix_of(tiny)
    ids = question_tokens(tiny, prefix, "Why?")
    assert tiny.tokenizer.decode(ids) == "\n\nWhy?<eos>\n<assistant>\n"
    assert tiny.tokenizer.eos_token_id in ids
    assert prefix.tail == "<eos>\n<assistant>\n"


def test_a_cached_document_and_a_question_are_what_a_chat_sends(tiny: kvtool.Model) -> None:
    prefix = prefix_of(tiny, system="Be brief.")
    whole = [*prefix.token_ids, *document_tokens(tiny, WORDS), *question_tokens(tiny, prefix, "Why?")]
    assert whole == rendered(tiny, ("system", "Be brief."), ("user", f"{WORDS}\n\nWhy?"))


def test_threads_do_not_change_what_others_read(tiny: kvtool.Model) -> None:
    """A tokenizer keeps in itself whether it reads special tokens."""
    text = "said <user> and <eos>, " * 20
    words = document_tokens(tiny, text)

    def user_ids() -> list[int]:
        return list(tiny.tokenizer("<user>", add_special_tokens=False).input_ids)

    (user,) = user_ids()

    def commands() -> bool:
        return all(user_ids() == [user] for _ in range(1000))

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(commands) for _ in range(3)]
        assert all(document_tokens(tiny, text) == words for _ in range(1000))
        assert all(other.result() for other in others)


@pytest.fixture(scope="module")
def without_bos(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """The tiny model with a tokenizer that leaves BOS to the chat template."""
    directory = tmp_path_factory.mktemp("models") / "without-bos"
    shutil.copytree(tiny_dir, directory)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    template = directory / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text().replace("<bos>", ""))
    return kvtool.load_model(directory, device="cpu")


@pytest.mark.parametrize("name", ["tiny", "without_bos"])
@pytest.mark.parametrize("spelled", ["", "<bos>", "<bos><bos>"])
def test_special_tokens_are_parsed_where_that_is_asked_for(
    name: str, spelled: str, request: pytest.FixtureRequest
) -> None:
    model: kvtool.Model = request.getfixturevalue(name)
    bos, text = model.tokenizer.bos_token_id, f"<user>{WORDS}<eos>"
    user, end = (model.tokenizer.convert_tokens_to_ids(token) for token in ("<user>", "<eos>"))
    parsed = [user, *document_tokens(model, WORDS), end]
    assert text_tokens(model, spelled + text, is_first=True, parse_special=True) == [bos, *parsed]
    assert text_tokens(model, text, is_first=False, parse_special=True) == parsed
    assert text_tokens(model, text, is_first=True) == [bos, *document_tokens(model, text)]


@pytest.mark.parametrize("name", ["tiny", "without_bos"])
@pytest.mark.parametrize("spelled", ["", "<bos>", "<bos><bos>"])
def test_every_door_puts_one_bos_first(name: str, spelled: str, request: pytest.FixtureRequest) -> None:
    model: kvtool.Model = request.getfixturevalue(name)
    bos = model.tokenizer.bos_token_id
    facts = document_tokens(model, "Facts")
    assert list(prefix_of(model, text=f"{spelled}Facts").token_ids) == [bos, *facts]
    assert text_tokens(model, f"{spelled}Facts", is_first=True) == [bos, *facts]
    assert text_tokens(model, "Facts", is_first=False) == facts
    assert prefix_of(model, none=True).token_ids == (bos,)
    assert prefix_of(model).token_ids.count(bos) == 1
    assert chat_tokens(model, [Message("user", "Facts")]).count(bos) == 1


def test_a_system_prompt_that_begins_with_bos(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "bare")
    bare = "{{ bos_token }}{% for message in messages %}{{ message.content }}\n{% endfor %}"
    (tmp_path / "bare" / "chat_template.jinja").write_text(bare)
    model = kvtool.load_model(tmp_path / "bare", device="cpu")
    assert (
        prefix_of(model, system="<bos>Be brief.").token_ids == prefix_of(model, system="Be brief.").token_ids
    )


@pytest.mark.slow
def test_a_turn_marker_is_no_bos(embedded: kvtool.Model) -> None:
    """The embedded model's tokenizer calls its turn marker BOS, and puts it nowhere by itself."""
    assert prefix_of(embedded, none=True).token_ids == ()
    assert text_tokens(embedded, "Facts", is_first=True) == document_tokens(embedded, "Facts")


def test_added_tokens_that_are_not_called_special_are_text(tiny_dir: Path, tmp_path: Path) -> None:
    """DeepSeek's turn markers and Qwen's <think> are such tokens."""
    directory = tmp_path / "marked"
    shutil.copytree(tiny_dir, directory)
    path = directory / "tokenizer.json"
    body = json.loads(path.read_text())
    last = max(token["id"] for token in body["added_tokens"])
    unmarked = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for number, content in enumerate(["<think>", "    "], last + 1):
        body["added_tokens"].append({"id": number, "content": content} | unmarked)
    path.write_text(json.dumps(body))
    model = kvtool.load_model(directory, device="cpu")
    assert last + 1 in model.tokenizer("<think>").input_ids
    spelled = "a<think>b<eos>c"
    ids = document_tokens(model, spelled)
    assert max(ids) < min(token["id"] for token in body["added_tokens"])
    assert model.tokenizer.decode(ids) == spelled
    assert chat_tokens(model, [Message("user", "<think>")]).count(last + 1) == 0
    # Runs of white space command nothing.
    assert last + 2 in document_tokens(model, "a    b")


PARTS = "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}"


@pytest.mark.parametrize(
    "refusal", ["", "{% if messages[0].content is string %}{{ raise_exception('parts!') }}{% endif %}"]
)
def test_a_template_that_takes_lists_of_parts(tiny_dir: Path, tmp_path: Path, refusal: str) -> None:
    directory = tmp_path / "parts"
    shutil.copytree(tiny_dir, directory)
    answer = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (directory / "chat_template.jinja").write_text(refusal + PARTS + answer)
    model = kvtool.load_model(directory, device="cpu")
    prefix = prefix_of(model, system="Be brief.")
    assert model.tokenizer.decode(prefix.token_ids).endswith("Be brief.<|end|><|user|>")
    assert prefix.tail == "<|end|><|assistant|>"
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    text = model.tokenizer.decode(chat_tokens(model, messages))
    assert text.endswith("<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>")
