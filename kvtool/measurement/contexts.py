"""What is cached and what is asked of it: heads of documents, haystacks with needles, documents with questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvtool.digest import Json, digest_token_ids
from kvtool.errors import UsageError
from kvtool.measurement.needles import Haystack, Question, haystacks
from kvtool.measurement.scope import LEAST_CACHED, Scope
from kvtool.model.chat_template import Prefix, conversation_tokens, document_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Document


@dataclass(frozen=True)
class Place:
    """A segment of a stored document."""

    document: str
    segment: int

    def n_tokens(self, store: Store) -> int:
        return store[self.document].segments[self.segment].n_tokens


@dataclass(frozen=True)
class Prompt:
    """Tokens asked behind a context, of which the model may answer ``max_tokens``; ``about`` says what it is for."""

    token_ids: tuple[int, ...]
    max_tokens: int
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """``token_ids`` are cached behind the prefix. Behind them ``fed`` is fed, predicting ``targets``, and each of
    ``prompts`` is answered. ``place`` is where the tokens' raw cache lies, None for what is prefilled anew. A haystack
    has a nominal ``length``, and may be ``repeated`` text.
    """

    kind: Literal["text", "needles", "questions"]
    name: str
    token_ids: tuple[int, ...]
    fed: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    place: Place | None = None
    length: int = 0
    repeated: bool = False

    @property
    def cost(self) -> int:
        """Tokens that are encoded or run for one candidate: what progress is counted in."""
        return (
            len(self.token_ids)
            + len(self.fed)
            + sum(len(p.token_ids) + 8 * p.max_tokens for p in self.prompts)
        )

    @property
    def prefill_cost(self) -> int:
        """Tokens that the model runs before any candidate has a turn."""
        return len(self.token_ids) if self.place is None else 0

    def identity(self, model: Model, prefix: Prefix) -> Json:
        """All that a measurement of this context depends on."""
        return {
            "model": model.fingerprint,
            "device": model.device_map,
            "prefix": prefix.digest,
            "cached": digest_token_ids(self.token_ids),
            "stored": self.place is not None,
            "fed": digest_token_ids(self.fed),
            "targets": digest_token_ids(self.targets),
            "prompts": [[digest_token_ids(p.token_ids), p.max_tokens] for p in self.prompts],
        }


def chosen(store: Store, names: Sequence[str], scope: Scope) -> list[Place]:
    """The segments that are looked at: all, or ``scope.documents`` of them, drawn by its seed, in order."""
    places = [Place(name, index) for name in names for index in range(len(store[name].segments))]
    if len(places) <= scope.documents:
        return places
    drawn = random.Random(scope.seed).sample(range(len(places)), scope.documents)
    return [places[index] for index in sorted(drawn)]


def text_contexts(store: Store, places: Sequence[Place], scope: Scope) -> tuple[list[Context], list[Place]]:
    """A context of each segment's first tokens, and the segments that are too short for one.

    Without KL nothing is fed, and of all of them the longest is enough.
    """
    contexts, short = [], []
    for place in places:
        ids = store.open(place.document, segment=place.segment).token_ids.tolist()
        cached = min(scope.context, len(ids) - scope.fed)
        if cached < LEAST_CACHED:
            short.append(place)
            continue
        contexts.append(
            Context(
                "text",
                segment_name(store[place.document], place),
                tuple(ids[:cached]),
                # The last cached token is fed again, so that all that is predicted is predicted over the cache.
                fed=tuple(ids[cached - 1 : cached - 1 + scope.fed]),
                targets=tuple(ids[cached : cached + scope.fed]),
                place=place,
            )
        )
    return (contexts if scope.fed else longest(contexts)), short


def longest(contexts: Sequence[Context]) -> list[Context]:
    """The longest of those that a store holds, if there is one: what times are measured on."""
    stored = [context for context in contexts if context.place is not None]
    return [max(stored, key=lambda context: len(context.token_ids))] if stored else []


def segment_name(document: Document, place: Place) -> str:
    """The document's name, and the segment's number where there are several."""
    return place.document if len(document.segments) == 1 else f"{place.document}#{place.segment}"


def needle_contexts(
    model: Model, prefix: Prefix, texts: Sequence[str], scope: Scope, *, later_turns: bool
) -> list[Context]:
    """Haystacks of the documents' own text; without ``later_turns`` every question is asked alone.

    Raises ``UsageError`` if they cannot be made, with what is missing.
    """
    made = haystacks(
        texts,
        lengths=scope.lengths or (),
        contexts=scope.haystacks,
        seed=scope.seed,
        count_tokens=lambda text: len(document_tokens(model, text)),
    )
    return [_haystack_context(model, prefix, haystack, later_turns) for haystack in made]


def too_short(short: Sequence[Place], store: Store, scope: Scope) -> UsageError:
    """What to say of segments that are too short to predict their end from their beginning."""
    first = short[0]
    return UsageError(
        first.document,
        f"segment {first.segment} has {first.n_tokens(store)} tokens"
        + (f" ({len(short) - 1} more are as short)" if len(short) > 1 else "")
        + f", and to cache at least {LEAST_CACHED} and predict {scope.fed}, {LEAST_CACHED + scope.fed} are needed",
        "give a smaller --tokens, or name longer documents",
    )


def _haystack_context(model: Model, prefix: Prefix, haystack: Haystack, later_turns: bool) -> Context:
    asked = [question for question in haystack.questions if later_turns or not question.history]
    return Context(
        "needles",
        haystack.name,
        tuple(document_tokens(model, haystack.text)),
        prompts=tuple(_needle_prompt(model, prefix, question) for question in asked),
        length=haystack.length,
        repeated=haystack.repeated,
    )


def _needle_prompt(model: Model, prefix: Prefix, question: Question) -> Prompt:
    ids = conversation_tokens(model, prefix, question.history, question.text, question.lead)
    about = {
        "task": question.task,
        "answers": list(question.answers),
        "depth": question.depth,
        "turn": len(question.history) + 1,
    }
    return Prompt(tuple(ids), question.max_tokens, about)
