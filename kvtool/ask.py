"""A question, answered over one cached document."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from .engines.cache import DocumentCache
from .engines.transformers import grouped_attention
from .errors import UsageError
from .load import refuse_mismatch
from .manifest import RAW
from .model import Model
from .prompt import prefix_again, question_tokens
from .store import Store


@dataclass(frozen=True)
class Answer:
    """``first_token_seconds`` runs from opening the artifacts (or, without a cache, from the prompt) to the first
    token; loading the model's weights is not part of it."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    load_seconds: float
    first_token_seconds: float
    seconds: float


def ask(
    question: str,
    *,
    document: str,
    model: Model,
    store: Store,
    variant: str = RAW,
    segment: int | None = None,
    max_tokens: int = 200,
    temperature: float = 0.0,
    seed: int | None = None,
    cached: bool = True,
    on_text: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Generates the answer to ``question`` over one segment of ``document``, greedily unless ``temperature``.

    ``cached=False`` runs the same tokens through a full prefill. Raises ``UsageError`` if the question does not
    fit behind the document, or if the document has several segments and none is chosen.
    """
    entry = store[document]
    if segment is None:
        if len(entry.segments) > 1:
            raise UsageError(
                f"{document}: has {len(entry.segments)} segments, each with a cache of its own; choose one with "
                f"--segment 0 to {len(entry.segments) - 1} (kvtool show {document} lists them)"
            )
        segment = 0
    refuse_mismatch(store.open(document, variant if cached else RAW, segment), model)
    asked = question_tokens(model, prefix_again(model, dict(entry.prefix["origin"])), question)
    length = entry.prefix["tokens"] + entry.segments[segment].n_tokens + len(asked)
    if length >= model.context:
        raise UsageError(
            f"{document}: with a question of {len(asked)} tokens it is {length} tokens long, {model.name} has a context "
            f"of {model.context}; ask a shorter question, or prefill with a smaller --segment-tokens"
        )
    _ = model.model
    started = time.monotonic()
    if cached:
        cache: DocumentCache | None = store.load(document, model, variant, segment)
        ids = cache.token_ids.tolist() if cache else []
    else:
        cache = None
        ids = [*_prefix_ids(store, document), *store.open(document, RAW, segment).token_ids.tolist()]
    loaded = time.monotonic()
    stream = _Stream(model.tokenizer, on_text)
    tokens = generate(
        model,
        [*ids, *asked],
        cache,
        max_tokens=min(max_tokens, model.context - length),
        temperature=temperature,
        seed=seed,
        streamer=stream,
    )
    return Answer(
        text=model.tokenizer.decode(tokens, skip_special_tokens=True),
        token_ids=tuple(tokens),
        prompt_tokens=length,
        cached_tokens=len(ids) if cached else 0,
        load_seconds=loaded - started,
        first_token_seconds=(stream.first or time.monotonic()) - started,
        seconds=time.monotonic() - started,
    )


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
    with grouped_attention(model):
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


def _prefix_ids(store: Store, document: str) -> list[int]:
    prefix = store[document].prefix_artifact
    return [] if prefix is None else store.open_artifact(prefix).token_ids.tolist()


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
