"""Multi-key needle retrieval, in the manner of RULER (arXiv 2404.06654): many keys in each haystack, each asked alone.

Beyond what ``kvtool eval`` asks, this is for many candidates at small losses. A haystack hides ten keys, not four: it is
prefilled once, every candidate restores it once, and all its questions are answered side by side. Keys are worded so that
the embedded model finds most of ten. The text is of documents that no calibration has seen, of one kind after the other,
and losses are paired with the raw cache's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from random import Random
from typing import Any

import kvtool
from benchmarks.corpora.texts import Text, held_out
from kvtool.evaluation.candidates import Candidate
from kvtool.evaluation.summary import Measured
from kvtool.measurement.contexts import Context, haystack_context
from kvtool.measurement.needles import Haystack, contained, haystack
from kvtool.measurement.statistics import Estimate, mean
from kvtool.measurement.tasks import LOOKUP, LOOKUP_TOKENS, draw_keys, key_task
from kvtool.model.chat_template import Prefix, document_tokens

LENGTHS = (1500, 3000)
HAYSTACKS = 10
KEYS = 10


@dataclass(frozen=True)
class Retrieved:
    """Answers of one candidate. ``right`` has a list for each haystack, in the order of ``haystacks``.

    ``score`` is the share of right answers, ``lost`` that of raw less its own, over the same questions; both have
    intervals from drawing haystacks, and questions within them, again. ``ratio`` counts all bytes of the haystacks.
    """

    name: str
    family: str
    ratio: float
    haystacks: tuple[str, ...]
    right: tuple[tuple[bool, ...], ...]
    score: Estimate
    lost: Estimate

    @property
    def n_asked(self) -> int:
        return sum(map(len, self.right))

    @property
    def n_right(self) -> int:
        return sum(map(sum, self.right))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "asked": self.n_asked, "found": self.n_right}


def haystack_contexts(
    model: kvtool.Model,
    prefix: Prefix,
    *,
    lengths: Sequence[int] = LENGTHS,
    haystacks: int = HAYSTACKS,
    number: int = KEYS,
    first: int = 0,
) -> list[Context]:
    """The haystacks with their questions. The ``first`` of a length are left out; others are the same whatever it is."""
    return [
        haystack_context(model, prefix, lookup_haystack(model, f"{length}/{n}", text, length, number))
        for length in lengths
        for n, text in list(enumerate(haystack_texts(model, length, first + haystacks)))[first:]
    ]


def lookup_haystack(model: kvtool.Model, seed: str, text: Text, length: int, number: int) -> Haystack:
    """``number`` keys hidden in ``length`` tokens of a text."""
    tasks = [key_task(key, LOOKUP) for key in draw_keys(Random(seed), text.text, number)]
    tasks = [replace(task, question=replace(task.question, max_tokens=LOOKUP_TOKENS)) for task in tasks]
    name = f"keys-{seed}-{text.source}"
    return haystack(name, tasks, text.text, length, lambda part: len(document_tokens(model, part)))


def haystack_texts(model: kvtool.Model, length: int, haystacks: int) -> list[Text]:
    """One of each kind, then the next of each."""
    texts = held_out(model, length, documents=HAYSTACKS)
    return list(chain.from_iterable(zip(*texts.values(), strict=True)))[:haystacks]


def scores(compared: Sequence[Candidate], measured: Sequence[Measured]) -> list[Retrieved]:
    """Of each candidate, the first of which is the raw cache, over ``measured`` haystacks."""
    results: list[Retrieved] = []
    for n, candidate in enumerate(compared):
        right = [
            [
                all(contained(p.about["answers"], answer))
                for p, answer in zip(one.context.prompts, one.records[n]["answers"], strict=True)
            ]
            for one in measured
        ]
        raw = results[0].right if results else right
        lost = [[float(a) - b for a, b in zip(x, y, strict=True)] for x, y in zip(raw, right, strict=True)]
        nbytes = sum(one.records[n]["nbytes"] for one in measured)
        score, difference = mean(right), mean(lost)
        assert score, "no questions"
        assert difference
        results.append(
            Retrieved(
                candidate.name,
                candidate.family,
                2 * sum(one.records[n]["n_elements"] for one in measured) / nbytes,
                tuple(one.context.name for one in measured),
                tuple(map(tuple, right)),
                score,
                difference,
            )
        )
    return results
