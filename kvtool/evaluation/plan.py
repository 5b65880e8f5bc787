"""The plan of an evaluation, checked as a whole before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.artifact.load import refuse_mismatch
from kvtool.calibration.lookup import finder
from kvtool.counts import counted
from kvtool.engines import transformers as engine
from kvtool.errors import ModelError, UsageError
from kvtool.evaluation.candidates import Candidate, Raw, chosen, variants_of
from kvtool.evaluation.conversations import question_contexts
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.questions import UserQuestion, read_questions
from kvtool.evaluation.run import Runner
from kvtool.measurement.contexts import (
    Context,
    choose_segments,
    longest,
    needle_contexts,
    text_contexts,
    too_short,
)
from kvtool.measurement.scope import Scope
from kvtool.model.chat_template import Prefix, keeps_turns
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import Document
from kvtool.store.segments import SegmentRef


@dataclass
class Plan:
    """Everything that is going to be measured.

    ``segments`` give the contexts their text, ``questions`` are the user's own on each context. ``notes`` say what is left
    out, and why. With ``leaves_out_unusable``, a candidate that the model cannot use is left out and not refused.
    """

    runner: Runner
    scope: Scope
    segments: list[SegmentRef]
    contexts: list[Context]
    questions: list[tuple[Context, list[UserQuestion]]]
    gate: Gate
    notes: list[str] = field(default_factory=list)
    leaves_out_unusable: bool = False

    @property
    def all_contexts(self) -> list[Context]:
        return [*self.contexts, *(context for context, _ in self.questions)]

    @property
    def timed(self) -> Context | None:
        """The context on which times are measured."""
        return next(iter(longest(self.all_contexts)), None) if "times" in self.scope.metrics else None

    @property
    def cost(self) -> int:
        """The cost in tokens, as progress is counted. Prompts of conversations are added when they are known."""
        each = sum(context.cost for context in self.all_contexts)
        prefill = sum(context.prefill_cost for context in self.contexts)
        rounds = self.scope.repeats * len(self.timed.token_ids) if self.timed else 0
        return prefill + each * len(self.runner.candidates) + rounds * (1 + len(self.runner.candidates))


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
    leaves_out_short: bool | None = None,
) -> Plan:
    """Plans what ``evaluate`` measures for the same arguments, and raises what it raises before it tries the candidates.

    Documents that are too short are left out, with a note, or refused: by default those that ``names`` name.
    """
    documents = [names] if isinstance(names, str) else list(dict.fromkeys(store if names is None else names))
    if not documents:
        raise UsageError("nothing to evaluate", f"{store} is empty", "run kvtool prefill first")
    entries = [store[name] for name in documents]
    prefix = _prefix(model, store, entries)
    find = finder(store, documents)
    coded = variants_of(store, documents) if recipes is None else chosen(recipes, store, documents, find)
    compared = [*coded, *others]
    if not compared:
        raise UsageError(
            "nothing to compare",
            f"{store} has no variants beside raw",
            "name recipes with --recipes kivi:bits=4,…, or run kvtool compress first",
        )
    gate.refuse_unmeasured(scope, questions is not None, [candidate.name for candidate in compared])
    segments = choose_segments(store, documents, scope)
    scope = scope.fitted(model, prefix, sum(ref.n_tokens(store) for ref in segments))
    runner = Runner(store, model, prefix, entries[0].prefix_artifact, [Raw(), *compared], fresh)
    notes: list[str] = []
    user_questions = _questions(runner, documents, questions, scope, notes)
    if leaves_out_short is None:
        leaves_out_short = names is None
    contexts = _contexts(runner, segments, scope, notes, leaves_out_short)
    if not contexts and not user_questions:
        raise UsageError(
            "nothing to measure", "--metrics answers needs questions to answer", "give --questions FILE"
        )
    total = sum(len(entry.segments) for entry in entries)
    if len(segments) < total and contexts:
        notes.append(f"{len(segments)} of {total} segments were drawn (--documents, --seed).")
    return Plan(runner, scope, segments, contexts, user_questions, gate, notes)


def _prefix(model: Model, store: Store, entries: Sequence[Document]) -> Prefix:
    """The prefix of all documents, made by this model."""
    engine.windows(model)
    for entry in entries:
        refuse_mismatch(store.open(entry.name), model)
        if entry.prefix["digest"] != entries[0].prefix["digest"]:
            raise UsageError(
                entry.name,
                f"was prefilled under another prefix than {entries[0].name}",
                "evaluate them apart, or prefill both under one",
            )
    return store.prefix(entries[0].name, model)


def _contexts(
    runner: Runner, refs: Sequence[SegmentRef], scope: Scope, notes: list[str], leaves_out_short: bool
) -> list[Context]:
    """Texts for KL and times, haystacks for retrieval. ``notes`` get a line for each omission."""
    contexts: list[Context] = []
    if "kl" in scope.metrics or "times" in scope.metrics:
        contexts, short = text_contexts(runner.store, refs, scope)
        if short and not (leaves_out_short and contexts):
            raise too_short(short, runner.store, scope)
        if short and scope.fed:
            omitted = ", ".join(dict.fromkeys(ref.document for ref in short))
            notes.append(f"Too short to predict {scope.fed} tokens of, and left out: {omitted} (--tokens).")
        if scope.fed and len({context.segment.document for context in contexts if context.segment}) == 1:
            notes.append("KL, dNLL and top-1 come from one document: their intervals say nothing of others.")
    if "retrieval" in scope.metrics:
        contexts += _haystacks(runner, refs, scope, notes)
    return contexts


def _haystacks(runner: Runner, refs: Sequence[SegmentRef], scope: Scope, notes: list[str]) -> list[Context]:
    segments = [runner.store.open(ref.document, segment=ref.segment) for ref in refs]
    texts = [runner.model.tokenizer.decode(segment.token_ids) for segment in segments]
    turns = keeps_turns(runner.model, runner.prefix)
    contexts = needle_contexts(runner.model, runner.prefix, texts, scope, later_turns=turns)
    if not turns:
        notes.append("Later turns were not asked, since the chat template does not keep earlier ones.")
    if repeated := sorted({context.length for context in contexts if context.repeated}):
        lengths = ", ".join(map(str, repeated))
        notes.append(f"Haystacks of {lengths} tokens repeat text: the documents are shorter.")
    return contexts


def _questions(
    runner: Runner, documents: Sequence[str], path: str | Path | None, scope: Scope, notes: list[str]
) -> list[tuple[Context, list[UserQuestion]]]:
    """The questions of the file ``path``, by context."""
    if "answers" not in scope.metrics:
        if path is not None:
            raise UsageError(
                f"--questions {path}", "--metrics leaves out answers", "add it, or leave out the questions"
            )
        return []
    if path is None:
        notes.append("Answers were not compared: no questions were given (--questions FILE).")
        return []
    questions = read_questions(Path(path), documents)
    for question in questions:
        _refuse_wrong_segment(path, question, len(runner.store[question.document].segments))
    by_context = question_contexts(runner.store, questions)
    for context, about_context in by_context:
        for question in about_context:
            _refuse_unanswerable(runner, context, question, scope)
    return by_context


def _refuse_wrong_segment(path: str | Path, question: UserQuestion, count: int) -> None:
    if question.segment is None and count > 1:
        raise UsageError(
            path,
            f"{question.document} has {counted(count, 'segment')}, each with a cache of its own",
            f'name one with "segment": 0 to {count - 1} (kvtool show {question.document} lists them)',
        )
    if question.segment is not None and question.segment >= count:
        raise UsageError(
            path,
            f"asks about segment {question.segment} of {question.document}, which has {count}, counted from 0",
        )


def _refuse_unanswerable(runner: Runner, context: Context, question: UserQuestion, scope: Scope) -> None:
    model = runner.model
    if len(question.turns) > 1 and not keeps_turns(model, runner.prefix):
        reason = "its chat template does not keep earlier turns as they were said"
        raise ModelError(model.name, reason, "ask questions of one turn")
    tokens = sum(len(model.tokenizer(turn).input_ids) + scope.answer_tokens + 16 for turn in question.turns)
    length = len(runner.prefix.token_ids) + len(context.token_ids) + tokens
    if length >= model.context:
        raise UsageError(
            context.name,
            f"with {question.turns[0][:40]!r} it is about {length} tokens long, {model.name} has a context of "
            f"{model.context}",
            "ask less, or prefill with a smaller --segment-tokens",
        )
