"""A question, answered over cached documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvtool.blending.blend import BlendOptions, assemble, shared_prefix
from kvtool.blending.cache import BlendedCache
from kvtool.blending.layout import Layout, Part, Text, lay_out, listed
from kvtool.blending.reading import Read, check_share, open_pages, read_of, refuse_unreadable
from kvtool.engines.batching.generate_many import generate_many
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import key_rotations
from kvtool.engines.generate import TextStream, generate, warm_up
from kvtool.engines.sampling import GREEDY, Sampling
from kvtool.errors import UsageError
from kvtool.model.chat_template import SEPARATOR, question_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.headers import parts_of
from kvtool.store.manifest import RAW
from kvtool.system.trace import Trace


@dataclass(frozen=True)
class Answer:
    """An answer, and how it came about.

    ``documents`` are the names that were asked for, ``variants`` those of their segments, each in order. ``cached`` is
    whether their caches were used. ``first_token_seconds`` runs from opening the artifacts (or, without caches, from the
    prompt) to the first token; loading the model and running it for the first time are not part of it. ``read`` is of a document
    that was read in part.
    """

    text: str
    token_ids: tuple[int, ...]
    documents: tuple[str, ...]
    variants: tuple[str, ...]
    policy: str
    cached: bool
    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    load_seconds: float
    first_token_seconds: float
    seconds: float
    read: Read | None = None

    def timed_as(self, other: Answer) -> Answer:
        """This answer with the times of ``other``, up to the first token."""
        load, first = other.load_seconds, other.first_token_seconds
        return replace(self, load_seconds=load, first_token_seconds=first)

    def to_json(self, uncached: Answer | None = None) -> dict[str, Any]:
        """The value that ``kvtool ask --json`` prints. ``uncached`` is the same question without caches, if it was asked."""
        full = uncached if self.cached else self
        return {
            "documents": list(self.documents),
            "variants": list(self.variants) if self.cached else None,
            "policy": self.policy,
            "recomputed_tokens": self.recomputed_tokens,
            "answer": self.text,
            "answer_tokens": len(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "read_bytes": self.read and self.read.nbytes,
            "stored_bytes": self.read and self.read.stored_nbytes,
            "load_seconds": round(self.load_seconds, 4),
            "first_token_seconds": round(self.first_token_seconds, 4),
            "first_token_seconds_without_cache": full and round(full.first_token_seconds, 4),
        }


def ask(
    question: str,
    documents: str | Part | Iterable[Part],
    model: Model,
    store: Store,
    *,
    variant: str = RAW,
    options: BlendOptions = BlendOptions(),
    separator: str = SEPARATOR,
    max_tokens: int = 200,
    sampling: Sampling = GREEDY,
    cached: bool = True,
    read: float | None = None,
    trace: Trace | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Generates the answer to ``question`` over ``documents``; ``sampling`` says how its tokens are chosen.

    Several documents, or one of several segments, are blended as ``options`` say, with ``separator`` between them.
    ``cached=False`` runs the same tokens through a full prefill.

    With ``read``, a share, that of a document's pages is read that the question ranks first, layer by layer while the model runs
    over it; ``variant`` is one of the recipe quest. Answers are those that these pages give: some of the rest may have mattered.

    Raises ``UsageError`` if the question does not fit after
    the documents, and what ``kvtool.blend`` raises.
    """
    if read is not None:
        check_share(read)
        if not cached:
            raise UsageError("read", "is of a cache", "leave it out with cached=False")
        store = parts_of(store)
    # Loading the tokenizer and hashing the weights are parts of loading the model, not of the times below.
    _ = model.text_tokenizer, model.fingerprint
    opening = time.monotonic()
    parts = listed(documents)
    layout = lay_out(store, parts, model, variant=variant if cached else RAW, separator=separator)
    opened = time.monotonic()
    (prompt,) = _prompts([question], layout, model, store)
    length = len(layout.token_ids) + len(prompt)
    prepared = time.monotonic() - (opening if cached else opened)
    if read is not None:
        refuse_unreadable(layout, model)
    # The times below are without those of loading the model, of its first run and of finding its rotations.
    warm_up(model)
    if not layout.is_alone and cached:
        key_rotations(model)
    started = time.monotonic() - prepared
    cache: DocumentCache | None = None
    with store.using(*layout.documents):
        if read is not None:
            cache = open_pages(layout, model, read)
        elif cached:
            cache = assemble(layout, model, options, [prompt], trace)
        loaded = time.monotonic()
        stream = TextStream(model.tokenizer, on_text)
        tokens = generate(
            model,
            [*layout.token_ids.tolist(), *prompt],
            cache,
            max_tokens=min(max_tokens, model.context - length),
            sampling=sampling,
            streamer=stream,
        )
    return Answer(
        text=model.tokenizer.decode(tokens, skip_special_tokens=True),
        token_ids=tuple(tokens),
        documents=tuple(p if isinstance(p, str) else p.name for p in parts if not isinstance(p, Text)),
        variants=layout.variants,
        policy=options.policy,
        cached=cached,
        prompt_tokens=length,
        cached_tokens=len(layout.token_ids) if cached else 0,
        recomputed_tokens=_recomputed(cache),
        load_seconds=loaded - started,
        first_token_seconds=(stream.first_token_time or time.monotonic()) - started,
        seconds=time.monotonic() - started,
        read=read_of(cache),
    )


@dataclass(frozen=True)
class Answers:
    """The answers to several questions, in order, and how they came about.

    ``documents`` are named once each. ``load_seconds`` run until the documents' cache was complete, ``seconds`` until the
    last answer was.
    """

    questions: tuple[str, ...]
    texts: tuple[str, ...]
    documents: tuple[str, ...]
    variants: tuple[str, ...]
    policy: str
    cached_tokens: int
    recomputed_tokens: int
    load_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The value that ``kvtool ask --json`` prints for several questions."""
        return {
            "documents": list(self.documents),
            "variants": list(self.variants),
            "policy": self.policy,
            "answers": [
                {"question": q, "answer": a} for q, a in zip(self.questions, self.texts, strict=True)
            ],
            "cached_tokens": self.cached_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "load_seconds": round(self.load_seconds, 4),
            "seconds": round(self.seconds, 4),
        }


def ask_each(
    questions: Sequence[str],
    documents: str | Part | Iterable[Part],
    model: Model,
    store: Store,
    *,
    variant: str = RAW,
    options: BlendOptions = BlendOptions(),
    separator: str = SEPARATOR,
    max_tokens: int = 200,
    trace: Trace | None = None,
) -> Answers:
    """The greedy answers to several questions over the same documents; none sees another.

    The documents are loaded and blended once. Each pass of the model reads them once for all questions, in one product with
    all their queries (as in Hydragen, arXiv 2402.05099). Recomputed tokens are chosen for all of them. Raises as ``ask``
    does.
    """
    started = time.monotonic()
    layout = lay_out(store, documents, model, variant=variant, separator=separator)
    prompts = _prompts(questions, layout, model, store)
    with store.using(*layout.documents):
        cache = assemble(layout, model, options, prompts, trace)
    loaded = time.monotonic()
    room = [min(max_tokens, model.context - len(layout.token_ids) - len(prompt)) for prompt in prompts]
    answers = generate_many(model, cache, prompts, room)
    return Answers(
        questions=tuple(questions),
        texts=tuple(model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers),
        documents=layout.documents,
        variants=layout.variants,
        policy=options.policy,
        cached_tokens=len(layout.token_ids),
        recomputed_tokens=_recomputed(cache),
        load_seconds=loaded - started,
        seconds=time.monotonic() - started,
    )


def _prompts(questions: Sequence[str], layout: Layout, model: Model, store: Store) -> list[list[int]]:
    """Each question's tokens. Raises ``UsageError`` for one that does not fit after the documents."""
    prefix = shared_prefix(layout, store, model)
    prompts = [question_tokens(model, prefix, question) for question in questions]
    longest = max(map(len, prompts), default=0)
    length = len(layout.token_ids) + longest
    if length >= model.context:
        sizes = f"with a question of {longest} tokens it is {length} tokens long"
        reason = f"{sizes}, {model.name} has a context of {model.context}"
        remedy = "ask a shorter question, or prefill with a smaller --segment-tokens"
        raise UsageError(", ".join(layout.documents), reason, remedy)
    return prompts


def _recomputed(cache: DocumentCache | None) -> int:
    return cache.recomputed if isinstance(cache, BlendedCache) else 0
