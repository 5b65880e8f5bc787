"""A question, answered over cached documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from kvtool.blending.blend import How, assemble, shared_prefix
from kvtool.blending.cache import BlendedCache
from kvtool.blending.layout import Layout, Part, lay_out
from kvtool.engines.attention.parallel_encoding import reading
from kvtool.engines.batching.generate_many import answer_each
from kvtool.engines.cache import DocumentCache
from kvtool.engines.transformers import grouped_attention
from kvtool.errors import UsageError
from kvtool.model.chat_template import BETWEEN, question_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW
from kvtool.system.trace import Trace


@dataclass(frozen=True)
class Answer:
    """``variants`` are those of the segments that were read, in order.

    ``first_token_seconds`` runs from opening the artifacts (or, without a cache, from the prompt) to the first token;
    loading the model's weights is not part of it.
    """

    text: str
    token_ids: tuple[int, ...]
    variants: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    load_seconds: float
    first_token_seconds: float
    seconds: float


def ask(
    question: str,
    documents: str | Part | Iterable[Part],
    model: Model,
    store: Store,
    *,
    variant: str = RAW,
    how: How = How(),
    between: str = BETWEEN,
    max_tokens: int = 200,
    temperature: float = 0.0,
    seed: int | None = None,
    cached: bool = True,
    trace: Trace | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Generates the answer to ``question`` over ``documents``, greedily unless ``temperature``.

    Several documents, or one of several segments, are blended as ``how`` says, with ``between`` between them.
    ``cached=False`` runs the same tokens through a full prefill. Raises ``UsageError`` if the question does not
    fit behind the documents, and what ``kvtool.blend`` raises.
    """
    opening = time.monotonic()
    layout = lay_out(store, documents, model, variant=variant if cached else RAW, between=between)
    (asked,) = _prompts([question], layout, model, store)
    length = len(layout.token_ids) + len(asked)
    opened = time.monotonic() - opening
    # Loading the model, and finding out how it rotates, are no part of the time that follows.
    _ = model.model if layout.is_alone or not cached else model.turned
    started = time.monotonic() - (opened if cached else 0.0)
    cache = assemble(layout, model, how, [asked], trace) if cached else None
    loaded = time.monotonic()
    stream = _Stream(model.tokenizer, on_text)
    tokens = generate(
        model,
        [*layout.token_ids.tolist(), *asked],
        cache,
        max_tokens=min(max_tokens, model.context - length),
        temperature=temperature,
        seed=seed,
        streamer=stream,
    )
    return Answer(
        text=model.tokenizer.decode(tokens, skip_special_tokens=True),
        token_ids=tuple(tokens),
        variants=layout.variants,
        prompt_tokens=length,
        cached_tokens=len(layout.token_ids) if cached else 0,
        recomputed_tokens=_recomputed(cache),
        load_seconds=loaded - started,
        first_token_seconds=(stream.first or time.monotonic()) - started,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Answers:
    """What was said to each question, in order.

    ``seconds`` is all of it, ``load_seconds`` until the documents' cache was there.
    """

    texts: tuple[str, ...]
    documents: tuple[str, ...]
    variants: tuple[str, ...]
    cached_tokens: int
    recomputed_tokens: int
    load_seconds: float
    seconds: float


def ask_each(
    questions: Sequence[str],
    documents: str | Part | Iterable[Part],
    model: Model,
    store: Store,
    *,
    variant: str = RAW,
    how: How = How(),
    between: str = BETWEEN,
    max_tokens: int = 200,
    trace: Trace | None = None,
) -> Answers:
    """The answers to several questions over the same documents, greedily; none sees another.

    The documents are loaded and blended once, and each pass of the model reads them once for all questions, in one
    product with all their queries (as Hydragen does, arXiv 2402.05099). What is recomputed is chosen for all of them.
    Raises as ``ask`` does.
    """
    started = time.monotonic()
    layout = lay_out(store, documents, model, variant=variant, between=between)
    asked = _prompts(questions, layout, model, store)
    cache = assemble(layout, model, how, asked, trace)
    loaded = time.monotonic()
    room = [min(max_tokens, model.context - len(layout.token_ids) - len(ids)) for ids in asked]
    said = answer_each(model, cache, asked, room)
    return Answers(
        texts=tuple(model.tokenizer.decode(ids, skip_special_tokens=True) for ids in said),
        documents=layout.documents,
        variants=layout.variants,
        cached_tokens=len(layout.token_ids),
        recomputed_tokens=_recomputed(cache),
        load_seconds=loaded - started,
        seconds=time.monotonic() - started,
    )


def _prompts(questions: Sequence[str], layout: Layout, model: Model, store: Store) -> list[list[int]]:
    """Each question's tokens. Raises ``UsageError`` for one that does not fit behind the documents."""
    prefix = shared_prefix(layout, store, model)
    prompts = [question_tokens(model, prefix, question) for question in questions]
    longest = max(map(len, prompts), default=0)
    length = len(layout.token_ids) + longest
    if length >= model.context:
        raise UsageError(
            ", ".join(layout.documents),
            (
                f"with a question of {longest} tokens it is {length} tokens long, {model.name} has a "
                f"context of {model.context}"
            ),
            "ask a shorter question, or prefill with a smaller --segment-tokens",
        )
    return prompts


def _recomputed(cache: DocumentCache | None) -> int:
    return cache.recomputed if isinstance(cache, BlendedCache) else 0


def generate(
    model: Model,
    token_ids: Sequence[int],
    cache: DocumentCache | None,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    streamer: Any = None,
) -> list[int]:
    """The tokens that follow ``token_ids``, of which ``cache`` holds the first."""
    ids = torch.tensor([token_ids], device=model.model.get_input_embeddings().weight.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
    with grouped_attention(model), reading(model, cache):
        out = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=max_tokens,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id,
            streamer=streamer,
            **sampling,
        )
    return [int(token) for token in out[0, len(token_ids) :]]


class _Stream(TextStreamer):  # type: ignore[misc]
    """Hands over text as it is decoded, and notes when the first token came."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text, self._prompt_seen = on_text, False
        self.first: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen and self.first is None:
            self.first = time.monotonic()
        self._prompt_seen = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)
