"""Contexts: cached tokens, and the questions that follow them.

There are three kinds: the first tokens of a document, haystacks with needles, and documents with questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvtool.codecs import KV
from kvtool.digest import Json, digest_token_ids
from kvtool.errors import UsageError
from kvtool.measurement.needles import Haystack, Question, haystacks
from kvtool.measurement.scope import LEAST_CACHED, Scope
from kvtool.model.chat_template import Prefix, conversation_tokens, document_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Document
from kvtool.store.segments import SegmentRef


@dataclass(frozen=True)
class Prompt:
    """Tokens after a context, answered with at most ``max_tokens``. ``about`` has the facts that a summary groups by."""

    token_ids: tuple[int, ...]
    max_tokens: int
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """Tokens that are cached after the prefix, and what is measured over their cache.

    ``fed`` are fed after them, to predict ``targets``. Each of ``prompts`` is answered. ``segment`` has their raw cache in a
    store; it is None for tokens that are prefilled for this context. A haystack has a nominal ``length``, in tokens, and may
    be ``repeated`` text.
    """

    kind: Literal["text", "needles", "questions"]
    name: str
    token_ids: tuple[int, ...]
    fed: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    segment: SegmentRef | None = None
    length: int = 0
    repeated: bool = False

    @property
    def cost(self) -> int:
        """Tokens that are encoded or run for one candidate. Progress is counted in them."""
        prompts = sum(len(prompt.token_ids) + 8 * prompt.max_tokens for prompt in self.prompts)
        return len(self.token_ids) + len(self.fed) + prompts

    @property
    def prefill_cost(self) -> int:
        """Tokens that the model runs before any candidate has a turn."""
        return len(self.token_ids) if self.segment is None else 0

    def identity(self, model: Model, prefix: Prefix) -> Json:
        """Everything that a measurement of this context depends on, as JSON."""
        return {
            "model": model.fingerprint,
            "device": model.device_map,
            "prefix": prefix.digest,
            "cached": digest_token_ids(self.token_ids),
            "stored": self.segment is not None,
            "fed": digest_token_ids(self.fed),
            "targets": digest_token_ids(self.targets),
            "prompts": [[digest_token_ids(p.token_ids), p.max_tokens] for p in self.prompts],
        }


def choose_segments(store: Store, names: Sequence[str], scope: Scope) -> list[SegmentRef]:
    """All segments of ``names``, or ``scope.documents`` of them drawn by its seed, in order."""
    refs = [SegmentRef(name, index) for name in names for index in range(len(store[name].segments))]
    if len(refs) <= scope.documents:
        return refs
    drawn = random.Random(scope.seed).sample(range(len(refs)), scope.documents)
    return [refs[index] for index in sorted(drawn)]


def text_contexts(
    store: Store, refs: Sequence[SegmentRef], scope: Scope
) -> tuple[list[Context], list[SegmentRef]]:
    """A context of each segment's first tokens, and the segments that are too short for one.

    Without KL nothing is fed, and the longest context is enough.
    """
    contexts, short = [], []
    for ref in refs:
        ids = store.open(ref.document, segment=ref.segment).token_ids.tolist()
        cached = min(scope.context, len(ids) - scope.fed)
        if cached < LEAST_CACHED:
            short.append(ref)
            continue
        # The last cached token is fed again, so that every prediction is made over the cache.
        fed, targets = (tuple(ids[start : start + scope.fed]) for start in (cached - 1, cached))
        name = segment_name(store[ref.document], ref)
        contexts.append(Context("text", name, tuple(ids[:cached]), fed, targets, segment=ref))
    return (contexts if scope.fed else longest(contexts)), short


def first_tokens(store: Store, ref: SegmentRef, count: int) -> KV:
    """The keys and values of a segment's first ``count`` tokens, as views."""
    return store.read(ref.document, ref.variant, ref.segment).of(range(count))


def longest(contexts: Sequence[Context]) -> list[Context]:
    """The longest of the contexts that a store holds, if there is one. Times are measured on it."""
    stored = [context for context in contexts if context.segment is not None]
    return [max(stored, key=lambda context: len(context.token_ids))] if stored else []


def segment_name(document: Document, ref: SegmentRef) -> str:
    """The document's name, and the segment's number where there are several."""
    return ref.document if len(document.segments) == 1 else f"{ref.document}#{ref.segment}"


def needle_contexts(
    model: Model, prefix: Prefix, texts: Sequence[str], scope: Scope, *, later_turns: bool
) -> list[Context]:
    """Haystacks of the documents' own text. Without ``later_turns`` there are no conversations.

    Raises ``UsageError`` if they cannot be made, with what is missing.
    """
    drawn = haystacks(
        texts,
        lengths=scope.lengths or (),
        contexts=scope.haystacks,
        seed=scope.seed,
        count_tokens=lambda text: len(document_tokens(model, text)),
    )
    return [haystack_context(model, prefix, haystack, later_turns=later_turns) for haystack in drawn]


def too_short(short: Sequence[SegmentRef], store: Store, scope: Scope) -> UsageError:
    """The error for segments too short to predict their last tokens from their first."""
    first = short[0]
    more = f" ({len(short) - 1} more are as short)" if len(short) > 1 else ""
    return UsageError(
        first.document,
        f"segment {first.segment} has {first.n_tokens(store)} tokens{more}, and to cache at least "
        f"{LEAST_CACHED} and predict {scope.fed}, {LEAST_CACHED + scope.fed} are needed",
        "give a smaller --tokens, or name longer documents",
    )


def haystack_context(
    model: Model, prefix: Prefix, haystack: Haystack, *, later_turns: bool = False
) -> Context:
    """A haystack with its questions. Without ``later_turns`` there are no conversations."""
    questions = [question for question in haystack.questions if later_turns or not question.history]
    return Context(
        "needles",
        haystack.name,
        tuple(document_tokens(model, haystack.text)),
        prompts=tuple(_needle_prompt(model, prefix, question) for question in questions),
        length=haystack.length,
        repeated=haystack.repeated,
    )


def _needle_prompt(model: Model, prefix: Prefix, question: Question) -> Prompt:
    ids = conversation_tokens(model, prefix, question.history, question.text, question.lead)
    answers, turn = list(question.answers), len(question.history) + 1
    about = {"task": question.task, "answers": answers, "depth": question.depth, "turn": turn}
    return Prompt(tuple(ids), question.max_tokens, about)
