"""A user's own questions, as prompts after their documents.

In a conversation, the turns before a question are answered as the raw cache answers them, for every candidate. So a wrong
answer is counted once, and each turn can be asked over a fresh cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.engines.batching.generate_many import generate_many
from kvtool.evaluation.questions import UserQuestion
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, Prompt, segment_name
from kvtool.measurement.scope import Scope
from kvtool.model.chat_template import conversation_tokens
from kvtool.store.base import Store
from kvtool.store.segments import SegmentRef


def question_contexts(
    store: Store, questions: Sequence[UserQuestion]
) -> list[tuple[Context, list[UserQuestion]]]:
    """A context without prompts for each segment that has questions, and the questions."""
    by_segment: dict[SegmentRef, list[UserQuestion]] = {}
    for question in questions:
        ref = SegmentRef(question.document, question.segment or 0)
        by_segment.setdefault(ref, []).append(question)
    contexts = []
    for ref, about_segment in by_segment.items():
        ids = tuple(store.open(ref.document, segment=ref.segment).token_ids.tolist())
        context = Context("questions", segment_name(store[ref.document], ref), ids, segment=ref)
        contexts.append((context, about_segment))
    return contexts


def recall_answers(
    bench: Bench, context: Context, questions: Sequence[UserQuestion], scope: Scope, *, fresh: bool
) -> list[list[str]] | None:
    """Answers over the raw cache to all turns but the last, for each conversation, from an earlier run.

    None if they are not known yet: no run has noted them, or everything is measured afresh.
    """
    if all(len(question.turns) == 1 for question in questions):
        return [[] for _ in questions]
    return None if fresh else journal.recall(_key(bench, context, questions, scope))


def hold_conversations(
    bench: Bench, context: Context, questions: Sequence[UserQuestion], scope: Scope
) -> list[list[str]]:
    """Answers to all turns but the last, over the raw cache of the context that the bench holds. Notes them."""
    cache = bench.load()
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions) - 1):
        unfinished = [n for n, question in enumerate(questions) if len(question.turns) > turn + 1]
        prompts = [_prompt(bench, questions[n], answers[n], turn, scope) for n in unfinished]
        token_ids = generate_many(
            bench.model, cache, [p.token_ids for p in prompts], [p.max_tokens for p in prompts]
        )
        for n, ids in zip(unfinished, token_ids, strict=True):
            answers[n].append(bench.model.tokenizer.decode(ids, skip_special_tokens=True))
    journal.remember(_key(bench, context, questions, scope), answers)
    return answers


def with_prompts(
    bench: Bench,
    context: Context,
    questions: Sequence[UserQuestion],
    answers: Sequence[Sequence[str]],
    scope: Scope,
) -> Context:
    """The context with a prompt for every turn of every conversation."""
    prompts = [
        _prompt(bench, question, earlier, turn, scope)
        for question, earlier in zip(questions, answers, strict=True)
        for turn in range(len(question.turns))
    ]
    return replace(context, prompts=tuple(prompts))


def _prompt(bench: Bench, question: UserQuestion, answers: Sequence[str], turn: int, scope: Scope) -> Prompt:
    history = list(zip(question.turns[:turn], answers[:turn], strict=True))
    ids = conversation_tokens(bench.model, bench.prefix, history, question.turns[turn])
    about = {"document": question.document, "question": question.turns[turn], "turn": turn + 1}
    return Prompt(tuple(ids), scope.answer_tokens, about)


def _key(bench: Bench, context: Context, questions: Sequence[UserQuestion], scope: Scope) -> str:
    turns = [list(question.turns) for question in questions]
    return journal.key(
        "conversations", context.identity(bench.model, bench.prefix), turns, scope.answer_tokens
    )
