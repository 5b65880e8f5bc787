"""A user's own questions, as prompts behind their documents.

In a conversation, the turns before a question are answered as the raw cache answers them, for every candidate: so a
wrong answer is counted once, and each turn can be asked over a fresh cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.engines.batching.generate_many import generate_many
from kvtool.evaluation.questions import Asked
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, Place, Prompt, segment_name
from kvtool.measurement.scope import Scope
from kvtool.model.chat_template import Prefix, conversation_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store


def question_contexts(store: Store, asked: Sequence[Asked]) -> list[tuple[Context, list[Asked]]]:
    """A context without prompts for each segment that is asked about, and what is asked."""
    by_place: dict[Place, list[Asked]] = {}
    for one in asked:
        by_place.setdefault(Place(one.document, one.segment or 0), []).append(one)
    found = []
    for place, questions in by_place.items():
        ids = tuple(store.open(place.document, segment=place.segment).token_ids.tolist())
        context = Context("questions", segment_name(store[place.document], place), ids, place=place)
        found.append((context, questions))
    return found


def histories(
    model: Model, prefix: Prefix, context: Context, asked: Sequence[Asked], scope: Scope, *, fresh: bool
) -> list[list[str]] | None:
    """For each conversation its answers over the raw cache, but for the last turn's, behind which nothing is asked.

    None if they are to be found first: no earlier run has noted them, or all is to be measured afresh.
    """
    if all(len(one.turns) == 1 for one in asked):
        return [[] for _ in asked]
    return None if fresh else journal.recall(_key(model, prefix, context, asked, scope))


def converse(bench: Bench, context: Context, asked: Sequence[Asked], scope: Scope) -> list[list[str]]:
    """``histories``, held now with the raw cache of the context that the bench holds: turn by turn."""
    model = bench.model
    cache = bench.load()
    answers: list[list[str]] = [[] for _ in asked]
    for turn in range(max(len(one.turns) for one in asked) - 1):
        there = [n for n, one in enumerate(asked) if len(one.turns) > turn + 1]
        prompts = [_prompt(model, bench.prefix, asked[n], answers[n], turn, scope) for n in there]
        said = generate_many(model, cache, [p.token_ids for p in prompts], [p.max_tokens for p in prompts])
        for n, ids in zip(there, said, strict=True):
            answers[n].append(model.tokenizer.decode(ids, skip_special_tokens=True))
    journal.remember(_key(model, bench.prefix, context, asked, scope), answers)
    return answers


def with_prompts(
    model: Model,
    prefix: Prefix,
    context: Context,
    asked: Sequence[Asked],
    answers: Sequence[Sequence[str]],
    scope: Scope,
) -> Context:
    """The context, asked every turn of every conversation."""
    prompts = [
        _prompt(model, prefix, one, answers[n], turn, scope)
        for n, one in enumerate(asked)
        for turn in range(len(one.turns))
    ]
    return replace(context, prompts=tuple(prompts))


def _prompt(
    model: Model, prefix: Prefix, asked: Asked, answers: Sequence[str], turn: int, scope: Scope
) -> Prompt:
    before = list(zip(asked.turns[:turn], answers[:turn], strict=True))
    ids = conversation_tokens(model, prefix, before, asked.turns[turn])
    about = {"document": asked.document, "question": asked.turns[turn], "turn": turn + 1}
    return Prompt(tuple(ids), scope.answer_tokens, about)


def _key(model: Model, prefix: Prefix, context: Context, asked: Sequence[Asked], scope: Scope) -> str:
    turns = [list(one.turns) for one in asked]
    return journal.key("conversations", context.identity(model, prefix), turns, scope.answer_tokens)
