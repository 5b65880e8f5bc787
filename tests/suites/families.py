"""What kvtool makes of a family of models: the same answers from a cache as without one, or a refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import kvtool
from kvtool.ask import ask, ask_each
from kvtool.engines.batching.generate_many import logits_after
from kvtool.engines.batching.multi_cache import feed_batches, supports_multi_cache
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.transformers import windows
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from kvtool.store.local import LocalStore
from tests.families import save, tokenizer
from tests.suites.architectures import tiny_config

TEXTS = {
    "a.txt": "The red apple costs three crowns, and the green one two. Pears are sold out until Friday.",
    "b.txt": "Seven ships left the harbour.",
}
QUESTIONS = ("And then?", "What does it cost on Friday?")
ANSWER_TOKENS = 8
BOUND = 1e-4
"""Of the logits, relative to the largest: another order of summation."""

EQUAL, REFUSED, WRONG, BROKEN = "equal", "refused", "wrong", "broken"


class Verdict(NamedTuple):
    """``state`` is ``EQUAL`` or ``REFUSED``; else ``WRONG``, or ``BROKEN`` by an error that is none of kvtool's own."""

    family: str
    state: str
    reason: str = ""


def verdict(model_type: str) -> Verdict:
    """Tries a tiny random model of a family in every way that its cache is used."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            differences = list(_differences(*_prefilled(model_type, Path(directory))))
    except ModelError as error:
        return Verdict(model_type, REFUSED, error.reason)
    except Exception as error:
        return Verdict(model_type, BROKEN, f"{type(error).__name__}: {error}".splitlines()[0])
    return Verdict(model_type, WRONG if differences else EQUAL, ", ".join(differences))


def _prefilled(model_type: str, directory: Path) -> tuple[kvtool.Model, LocalStore]:
    config, folder = tiny_config(model_type), directory / "model"
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    # Many are refused by their configuration. Those need no weights, which would take time.
    windows(kvtool.load_model(folder, device="cpu"))
    model = kvtool.load_model(save(folder, config), device="cpu")
    store = LocalStore(directory / "store")
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    report = kvtool.prefill([directory / name for name in TEXTS], model=model, store=store)
    assert not report.problems
    return model, store


def _differences(model: kvtool.Model, store: LocalStore) -> Iterator[str]:
    """The ways in which answers over the cache are not those of a plain pass."""
    for name in TEXTS:
        plain = [_ask(model, store, name, question, cached=False) for question in QUESTIONS]
        if [_ask(model, store, name, question, cached=True) for question in QUESTIONS] != plain:
            yield f"answers about {name}"
        if list(ask_each(QUESTIONS, name, model, store, max_tokens=ANSWER_TOKENS).texts) != plain:
            yield f"answers about {name}, together"
    question = document_tokens(model, QUESTIONS[0])
    caches = [store.load(name, model) for name in TEXTS]
    logits = [_plain_logits(model, cache.token_ids.tolist(), question) for cache in caches]
    if _near(logits[0][-1], logits[1][-1]):
        yield "answers do not depend on the document, so that equal ones say nothing"
    if not all(map(_near, (logits_after(model, cache, question) for cache in caches), logits)):
        yield "logits after a cache"
    if supports_multi_cache(model):
        feeds = [(SequenceBatch(model, cache), [(0, question)]) for cache in caches]
        if not all(map(_near, feed_batches(model, feeds), (rows[-1:] for rows in logits))):
            yield "logits after several caches in one pass"


def _ask(model: kvtool.Model, store: LocalStore, name: str, question: str, *, cached: bool) -> str:
    return ask(question, name, model, store, max_tokens=ANSWER_TOKENS, cached=cached).text


@torch.no_grad()
def _plain_logits(model: kvtool.Model, document: Sequence[int], question: Sequence[int]) -> Tensor:
    ids = torch.tensor([[*document, *question]])
    return model.model(ids, use_cache=False).logits[0, -len(question) :].float()


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < BOUND * b.abs().max())
