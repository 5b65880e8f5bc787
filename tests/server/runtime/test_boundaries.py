"""A prompt that continues a cached document, where the tokenizer joins the document's end with what follows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import kvtool
from kvtool.server.app import create_app
from kvtool.server.http.logs import LineFormatter
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.testing.tiny_model import TEMPLATE
from tests.server.asking import LIMITS, cached_tokens, chat, text_of
from tests.server.conftest import RAW_ONLY

BODY = "Seven ships lie in the harbour. A loaf costs three crowns, and the mill is closed on Mondays.\n\n" * 8
ENDS = ("The harbour.", "The harbour", "The harbour.\n", "The harbour \n\n", "12")
CONTINUATIONS = ("\n\nHow many ships?", "\nHow many?", " master sleeps.", "s are closed.", "34 loaves")


@pytest.fixture(scope="module")
def merging(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """A tiny model with a tokenizer that merges bytes into words and runs of newlines."""
    directory = make_model(
        tmp_path_factory.mktemp("merging") / "merging", vocab_size=512, initializer_range=0.3
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [BODY + end + more for end in ENDS for more in CONTINUATIONS]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<|system|>", "<|user|>", "<|assistant|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", extra_special_tokens=special
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log's lines."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(LineFormatter(as_json=True).format(record))

    logger, handler = logging.getLogger("kvtool"), Handler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_document_that_is_continued_is_found_but_for_its_last_tokens(
    merging: kvtool.Model, tmp_path: Path, lines: list[str]
) -> None:
    names = {}
    for n, end in enumerate(ENDS):
        names[end] = tmp_path / f"{n}.md"
        names[end].write_text(BODY + end)
    store = LocalStore(tmp_path / "store")
    assert not kvtool.prefill(names.values(), model=merging, store=store).problems
    service = Service.over(store.root, merging, LIMITS, loading=RAW_ONLY)
    lost = []
    with TestClient(create_app(service)) as client:
        for end in ENDS:
            for more in CONTINUATIONS:
                content = BODY + end + more
                options = {"model": merging.name, "max_tokens": 3}
                answer = chat(client, content, **options)
                line = json.loads(lines[-1])
                stored = line["stored_tokens"]
                assert cached_tokens(answer) == line["cached_tokens"] == line["matched_tokens"]
                assert text_of(answer) == text_of(chat(client, content, **options, use_cache=False))
                lost.append(stored - line["matched_tokens"])
    assert max(lost) > 0, "no case joins a document's end with what follows"
    assert max(lost) <= 4
