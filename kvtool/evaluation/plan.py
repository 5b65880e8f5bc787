"""What an evaluation is going to measure, checked whole before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.artifact.load import refuse_mismatch
from kvtool.calibration.lookup import finder
from kvtool.engines import transformers as engine
from kvtool.errors import ModelError, UsageError
from kvtool.evaluation.candidates import Candidate, Raw, candidates, variants_of
from kvtool.evaluation.conversations import question_contexts
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.questions import Asked, read_questions
from kvtool.evaluation.run import Runner
from kvtool.measurement.contexts import (
    Context,
    Place,
    chosen,
    longest,
    needle_contexts,
    text_contexts,
    too_short,
)
from kvtool.measurement.scope import Scope
from kvtool.model.chat_template import Prefix, keeps_turns, prefix_again
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Document


@dataclass
class Plan:
    """All that is going to be measured. ``places`` are the segments that it is about; ``notes`` say what is left out,
    and why."""

    runner: Runner
    scope: Scope
    places: list[Place]
    contexts: list[Context]
    asked: list[tuple[Context, list[Asked]]]
    gate: Gate
    notes: list[str] = field(default_factory=list)

    @property
    def timed(self) -> Context | None:
        """What times are measured on."""
        if "times" not in self.scope.metrics:
            return None
        return next(iter(longest([*self.contexts, *(context for context, _ in self.asked)])), None)

    @property
    def cost(self) -> int:
        """In tokens, as progress is counted; conversations have their prompts, and so their part, later."""
        each = sum(context.cost for context in [*self.contexts, *(context for context, _ in self.asked)])
        before = sum(context.prefill_cost for context in self.contexts)
        rounds = self.scope.repeats * len(self.timed.token_ids) if self.timed else 0
        return before + each * len(self.runner.candidates) + rounds * (1 + len(self.runner.candidates))


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
        raise UsageError("nothing to evaluate", f"{store} is empty", "run kvtool prefill first")
    entries = [store[name] for name in documents]
    prefix = _prefix(model, store, entries)
    find = finder(store, documents)
    coded = candidates(recipes, find) if recipes is not None else variants_of(store, documents)
    compared = [*coded, *others]
    if not compared:
        raise UsageError(
            "nothing to compare",
            f"{store} has no variants beside raw",
            "name recipes with --recipes kivi:bits=4,…, or run kvtool compress first",
        )
    gate.refuse_unmeasured(scope, questions is not None, [candidate.name for candidate in compared])
    places = chosen(store, documents, scope)
    scope = scope.fitted(model, prefix, sum(place.n_tokens(store) for place in places))
    notes: list[str] = []
    asked = _asked(store, documents, model, prefix, questions, scope, notes)
    contexts = _contexts(store, places, model, prefix, scope, notes, named=names is not None)
    if not contexts and not asked:
        raise UsageError(
            "nothing to measure", "--metrics answers needs questions to answer", "give --questions FILE"
        )
    whole = sum(len(entry.segments) for entry in entries)
    if len(places) < whole and contexts:
        notes.append(f"{len(places)} of {whole} segments were drawn (--documents, --seed).")
    runner = Runner(store, model, prefix, entries[0].prefix_artifact, [Raw(), *compared], fresh)
    return Plan(runner, scope, places, contexts, asked, gate, notes)


def _prefix(model: Model, store: Store, entries: Sequence[Document]) -> Prefix:
    """The prefix that all documents stand behind, made by this model."""
    engine.windows(model)
    for entry in entries:
        refuse_mismatch(store.open(entry.name), model)
        if entry.prefix["digest"] != entries[0].prefix["digest"]:
            raise UsageError(
                entry.name,
                f"was prefilled under another prefix than {entries[0].name}",
                "evaluate them apart, or prefill both under one",
            )
    prefix = prefix_again(model, dict(entries[0].prefix["origin"]))
    if prefix.digest != entries[0].prefix["digest"]:
        raise UsageError(
            entries[0].name,
            (
                f"its prefix cannot be made again, since {model.name}'s chat template gives another one "
                "now (one that prints the date, say)"
            ),
            "prefill with --system, --prefix-file or --no-prefix",
        )
    return prefix


def _contexts(
    store: Store,
    places: Sequence[Place],
    model: Model,
    prefix: Prefix,
    scope: Scope,
    notes: list[str],
    named: bool,
) -> list[Context]:
    contexts: list[Context] = []
    if "kl" in scope.metrics or "times" in scope.metrics:
        contexts, short = text_contexts(store, places, scope)
        if short and (named or not contexts):
            raise too_short(short, store, scope)
        if short and scope.fed:
            left = ", ".join(dict.fromkeys(place.document for place in short))
            notes.append(f"Too short to predict {scope.fed} tokens of, and left out: {left} (--tokens).")
        if scope.fed and len({context.place.document for context in contexts if context.place}) == 1:
            notes.append("KL, dNLL and top-1 come from one document: their intervals say nothing of others.")
    if "retrieval" in scope.metrics:
        texts = [
            model.tokenizer.decode(store.open(place.document, segment=place.segment).token_ids)
            for place in places
        ]
        turns = keeps_turns(model, prefix)
        needles = needle_contexts(model, prefix, texts, scope, later_turns=turns)
        if not turns:
            notes.append(
                "Later turns were not asked: the chat template does not keep earlier ones as they were said."
            )
        if repeated := sorted({context.length for context in needles if context.repeated}):
            notes.append(
                f"Haystacks of {', '.join(map(str, repeated))} tokens repeat text: the documents are shorter."
            )
        contexts += needles
    return contexts


def _asked(
    store: Store,
    documents: Sequence[str],
    model: Model,
    prefix: Prefix,
    questions: str | Path | None,
    scope: Scope,
    notes: list[str],
) -> list[tuple[Context, list[Asked]]]:
    if "answers" not in scope.metrics:
        if questions is not None:
            raise UsageError(
                f"--questions {questions}",
                "--metrics leaves out answers",
                "add it, or leave out the questions",
            )
        return []
    if questions is None:
        notes.append("Answers were not compared: no questions were given (--questions FILE).")
        return []
    read = read_questions(Path(questions), documents)
    for one in read:
        there = len(store[one.document].segments)
        if one.segment is None and there > 1:
            raise UsageError(
                questions,
                f"{one.document} has {there} segments, each with a cache of its own",
                f'name one with "segment": 0 to {there - 1} (kvtool show {one.document} lists them)',
            )
        if one.segment is not None and one.segment >= there:
            raise UsageError(
                questions,
                f"asks about segment {one.segment} of {one.document}, which has {there}, counted from 0",
            )
    found = question_contexts(store, read)
    for context, own in found:
        for one in own:
            _refuse_unanswerable(model, prefix, context, one, scope)
    return found


def _refuse_unanswerable(model: Model, prefix: Prefix, context: Context, asked: Asked, scope: Scope) -> None:
    if len(asked.turns) > 1 and not keeps_turns(model, prefix):
        raise ModelError(
            model.name,
            "its chat template does not keep earlier turns as they were said",
            "ask questions of one turn",
        )
    tokens = sum(len(model.tokenizer(turn).input_ids) + scope.answer_tokens + 16 for turn in asked.turns)
    length = len(prefix.token_ids) + len(context.token_ids) + tokens
    if length >= model.context:
        raise UsageError(
            context.name,
            (
                f"with {asked.turns[0][:40]!r} it is about {length} tokens long, {model.name} has a "
                f"context of {model.context}"
            ),
            "ask less, or prefill with a smaller --segment-tokens",
        )
