"""What an evaluation is going to measure, checked whole before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..engines import transformers as engine
from ..errors import ModelError, UsageError
from ..load import refuse_mismatch
from ..manifest import Document
from ..model import Model
from ..prompt import Prefix, keeps_turns, prefix_again
from ..store import Store
from .candidates import Candidate, Raw, candidates, variants_of
from .contexts import Context, chosen, needle_contexts, refuse_too_short, text_contexts
from .conversations import question_contexts
from .gate import Gate
from .questions import Asked, read_questions
from .run import Runner
from .scope import Scope


@dataclass
class Plan:
    """All that is going to be measured. ``notes`` say what is not, and why."""

    runner: Runner
    scope: Scope
    documents: list[str]
    contexts: list[Context]
    asked: list[tuple[Context, list[Asked]]]
    gate: Gate
    notes: list[str] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """In the tokens that progress is counted in; what is asked about is not known before, and guessed."""
        each = sum(context.cost for context in self.contexts)
        each += sum(
            len(context.token_ids) + sum(len(one.turns) for one in asked) * 10 * self.scope.answer_tokens
            for context, asked in self.asked
        )
        timed = longest_document(self.contexts)
        rounds = self.scope.repeats * len(timed.token_ids) if "times" in self.scope.metrics and timed else 0
        return (each + rounds) * len(self.runner.candidates)


def plan(
    store: Store,
    names: str | Sequence[str] | None,
    model: Model,
    recipes: Sequence[str] | None,
    questions: str | Path | None,
    scope: Scope,
    gate: Gate,
    others: Sequence[Candidate] = (),
    fresh: bool = False,
) -> Plan:
    """The plan of ``evaluate``, whose arguments these are. Raises what it raises, but for what a trial shows."""
    documents = [names] if isinstance(names, str) else list(dict.fromkeys(store if names is None else names))
    if not documents:
        raise UsageError(f"nothing to evaluate: {store.root} is empty; run kvtool prefill first")
    entries = [store[name] for name in documents]
    prefix = _prefix(model, store, entries)
    compared = [*(candidates(recipes) if recipes is not None else variants_of(store, documents)), *others]
    if not compared:
        raise UsageError(
            f"nothing to compare: {store.root} has no variants beside raw; name recipes with --recipes kivi:bits=4,…, or "
            "run kvtool compress first"
        )
    scope.refuse_too_long(model, prefix)
    gate.refuse_unmeasured(scope, questions is not None)
    notes: list[str] = []
    asked = []
    if "answers" in scope.metrics:
        if questions is None:
            notes.append("Answers were not compared: no questions were given (--questions FILE).")
        else:
            asked = question_contexts(store, read_questions(Path(questions), documents))
    contexts = _contexts(store, documents, model, prefix, scope, notes, named=names is not None)
    _refuse_unanswerable(model, prefix, asked, scope)
    runner = Runner(store, model, prefix, [Raw(), *compared], fresh)
    return Plan(runner, scope, documents, contexts, asked, gate, notes)


def _prefix(model: Model, store: Store, entries: Sequence[Document]) -> Prefix:
    """The prefix that all documents stand behind, made by this model."""
    engine.windows(model)
    for entry in entries:
        refuse_mismatch(store.open(entry.name), model)
        if entry.prefix["digest"] != entries[0].prefix["digest"]:
            raise UsageError(
                f"{entry.name}: was prefilled under another prefix than {entries[0].name}; evaluate them apart, or prefill "
                "both under one"
            )
    prefix = prefix_again(model, dict(entries[0].prefix["origin"]))
    if prefix.digest != entries[0].prefix["digest"]:
        raise UsageError(
            f"{entries[0].name}: its prefix cannot be made again, since {model.name}'s chat template gives another one now "
            "(one that prints the date, say); prefill with --system, --prefix-file or --no-prefix"
        )
    return prefix


def _contexts(
    store: Store,
    documents: Sequence[str],
    model: Model,
    prefix: Prefix,
    scope: Scope,
    notes: list[str],
    named: bool,
) -> list[Context]:
    places = chosen(store, documents, scope)
    whole = sum(len(store[name].segments) for name in documents)
    if len(places) < whole:
        notes.append(f"{len(places)} of {whole} segments were drawn (--documents, --seed).")
    contexts: list[Context] = []
    if "kl" in scope.metrics or "times" in scope.metrics:
        contexts, short = text_contexts(store, places, scope)
        if short and (named or not contexts):
            raise refuse_too_short(short, store, scope)
        if short:
            left = ", ".join(dict.fromkeys(place.document for place in short))
            notes.append(f"Too short to predict {scope.tokens} tokens of, and left out: {left} (--tokens).")
        if len(contexts) == 1:
            notes.append("KL, dNLL and top-1 come from one document: their intervals say nothing of others.")
    if "retrieval" in scope.metrics:
        texts = [
            model.tokenizer.decode(store.open(place.document, segment=place.segment).token_ids)
            for place in places
        ]
        needles = needle_contexts(model, prefix, texts, scope, later_turns=keeps_turns(model, prefix))
        if not keeps_turns(model, prefix):
            notes.append(
                "Later turns were not asked: the chat template does not keep earlier ones as they were said."
            )
        if repeated := sorted({context.length for context in needles if context.repeated}):
            notes.append(
                f"Haystacks of {', '.join(map(str, repeated))} tokens repeat text: the documents are shorter."
            )
        contexts += needles
    return contexts


def _refuse_unanswerable(
    model: Model, prefix: Prefix, asked: Sequence[tuple[Context, Sequence[Asked]]], scope: Scope
) -> None:
    for context, questions in asked:
        if any(len(one.turns) > 1 for one in questions) and not keeps_turns(model, prefix):
            raise ModelError(
                f"{model.name}: its chat template does not keep earlier turns as they were said; ask questions of one turn"
            )
        for one in questions:
            tokens = sum(
                len(model.tokenizer(turn).input_ids) + scope.answer_tokens + 16 for turn in one.turns
            )
            length = len(prefix.token_ids) + len(context.token_ids) + tokens
            if length >= model.context:
                raise UsageError(
                    f"{context.name}: with {one.turns[0][:40]!r} it is about {length} tokens long, {model.name} has a "
                    f"context of {model.context}; ask less, or prefill with a smaller --segment-tokens"
                )


def longest_document(contexts: Sequence[Context]) -> Context | None:
    """What times are measured on."""
    stored = [context for context in contexts if context.place is not None]
    return max(stored, key=lambda context: len(context.token_ids), default=None)
