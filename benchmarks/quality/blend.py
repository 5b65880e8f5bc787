"""What blending costs: policies and shares against full prefill, over sets of documents whose questions need two of them.

python -m benchmarks blend [--sets 40] [--one-source 8] [--shares 0.05 0.1 …] [--timed 4096] [--repeats 5] [--write PAGE]

Each set is blended by every candidate and asked its questions: KL to full prefill over the tokens of the answer, whether the
answer is the same, and whether numbers are found whose name stands in another document. Blends that know no question also
continue the last document's text. What was measured of a set is kept in build/blend, so that an interrupted run goes on; a
second process, started with --backwards, begins at the other end. Times are ratios of medians over interleaved rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.folders import BUILD
from benchmarks.common.output import Lines, machine
from benchmarks.common.timing import interleaved
from benchmarks.corpora.blend_sets import SETS, BlendQuestion, BlendSet, blend_sets, one_source_sets
from benchmarks.corpora.help_text import text_of
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.texts import Text
from benchmarks.pages.blend_page import FULL, body
from benchmarks.pages.tables import replaced
from benchmarks.quality.blend_prefill import prefill_cost
from benchmarks.quality.blend_rows import (
    COMPRESSED,
    MIXED,
    RANDOM,
    SHARES,
    SIMILAR,
    USUAL,
    Blended,
    candidates,
    usual_candidates,
)
from kvtool.ask import ask
from kvtool.blending.averaged import NEIGHBOURS, make_averaged
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached
from kvtool.digest import digest_json
from kvtool.engines.batching.generate_many import generate_many, logits_after
from kvtool.engines.cache import DocumentCache
from kvtool.measurement.distortion import distortion
from kvtool.model.chat_template import SEPARATOR, conversation_tokens, document_tokens
from kvtool.store.manifest import AVERAGED, RAW, averaged_name

FOLDER = BUILD / "blend"

CODED = "cachegen"
"""Timed too: it is decoded layer by layer, beside the model."""

CALIBRATION_TOKENS = 1024
"""Of each of the texts that klt learns from, where the store has no calibration yet."""

ANSWER_TOKENS = 16
"""Of the answer that full prefill gives to a question in prose."""

TIMED_DOCUMENTS = 4


@dataclass(frozen=True)
class Asked:
    """A prompt after the documents, the tokens that are expected after it, and which question it belongs to.

    ``text`` is the question; None for the text that follows the documents.
    """

    question: int
    text: str | None
    token_ids: list[int]
    targets: list[int]


Names: TypeAlias = Mapping[str, Mapping[str, list[str]]]
"""Names of each set's documents, by store and set."""


class Bench:
    """``stores`` are three of the same documents: averaged over random, over similar and over mixed neighbours."""

    def __init__(self, stores: Mapping[str, Prefilled], names: Names) -> None:
        self.stores, self.names = stores, names
        self.model, self.prefix = stores[RANDOM].model, stores[RANDOM].prefix

    def measure(self, one: BlendSet, compared: Sequence[Blended]) -> dict[str, Any]:
        """A record for each candidate: lists by question, in the order of ``one.questions``; last, the continuation's."""
        started = time.monotonic()
        full = self._blend(Blended("all", 1.0), one, None)
        asked = list(self._asked(one, full))
        expected = self._follow(full, asked)
        records = {FULL: _record(one, asked, expected, expected)}
        for candidate in compared:
            said: list[torch.Tensor | None] = [None] * len(asked)
            # What one question attends to is nothing to the next; a blend that knows no question is made once.
            questions = dict.fromkeys(a.text for a in asked if a.text) if candidate.asks else [None]
            for question in questions:
                cache = self._blend(candidate, one, question)
                some = [n for n, a in enumerate(asked) if question in (None, a.text)]
                for n, logits in zip(some, self._follow(cache, [asked[n] for n in some]), strict=True):
                    said[n] = logits
            records[candidate.name] = _record(one, asked, expected, said)
        seconds = time.monotonic() - started
        return {
            "documents": len(one.documents),
            "tokens": len(full.token_ids),
            "seconds": seconds,
            "candidates": records,
        }

    def _blend(self, candidate: Blended, one: BlendSet, question: str | None) -> DocumentCache:
        choice = candidate.neighbours or RANDOM
        cache = kvtool.blend(
            self.stores[choice].store,
            [Cached(name, candidate.variant) for name in self.names[choice][one.name]],
            self.model,
            recompute=candidate.share,
            policy=candidate.policy,
            question=question,
            separator=SEPARATOR,
        )
        if candidate.scale is not None:
            assert cache.parallel is not None
            # Only what attends to the documents reads it, and that comes later.
            cache.parallel = replace(cache.parallel, scale=candidate.scale)
        return cache

    def _asked(self, one: BlendSet, full: DocumentCache) -> Iterator[Asked]:
        """To each step of a multi-hop question its answer is expected, to prose what full prefill says."""
        for n, question in enumerate(one.questions):
            for step in question.steps:
                ids = conversation_tokens(self.model, self.prefix, (), step.text, step.lead)
                if step.answers:
                    targets = document_tokens(self.model, f" {step.answers[0]}")
                else:
                    (targets,) = generate_many(self.model, full, [ids], [ANSWER_TOKENS])
                yield Asked(n, step.text, ids, targets)
        first, *rest = document_tokens(self.model, one.continuation)
        yield Asked(len(one.questions), None, [first], rest)

    def _follow(self, cache: DocumentCache, asked: Sequence[Asked]) -> list[torch.Tensor]:
        """Logits at the tokens before each target, [targets, V] for each prompt."""
        return [
            logits_after(self.model, cache, [*a.token_ids, *a.targets[:-1]])[-len(a.targets) :]
            if a.targets
            else torch.empty(0)
            for a in asked
        ]


def _record(
    one: BlendSet,
    asked: Sequence[Asked],
    expected: Sequence[torch.Tensor],
    said: Sequence[torch.Tensor | None],
) -> dict[str, Any]:
    """Of a question: KL in nats per token, whether all likeliest tokens are those of full prefill, and, where there is an
    answer, whether they are that answer. ``plain`` has the KL of the continuation, where it was measured."""
    record: dict[str, Any] = {"kl": [], "same": [], "right": [], "plain": []}
    for n in range(len(one.questions) + 1):
        own = [
            (i, logits) for i, a in enumerate(asked) if a.question == n and (logits := said[i]) is not None
        ]
        compared = [
            distortion(expected[i], logits, asked[i].targets) for i, logits in own if asked[i].targets
        ]
        if not own:
            continue
        kl = [value for distorted in compared for value in distorted.kl]
        if n == len(one.questions):
            record["plain"].append(sum(kl) / max(1, len(kl)))
            continue
        record["kl"].append(sum(kl) / max(1, len(kl)))
        record["same"].append(float(all(all(distorted.top1) for distorted in compared)))
        if one.questions[n].kind == "hop":
            right = all(logits.argmax(-1).tolist() == asked[i].targets for i, logits in own)
            record["right"].append(float(right))
    return {**record, "kinds": [question.kind for question in one.questions]}


def timed(prefilled: Prefilled, tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first token over four documents of ``tokens`` in all; medians, rounds interleaved."""
    model, store = prefilled.model, prefilled.store
    size = tokens // TIMED_DOCUMENTS
    texts = [
        Text("timed", "help", f"timed-{tokens}-{n}.txt", text_of(model, size, skip=n * size))
        for n in range(TIMED_DOCUMENTS)
    ]
    names = [place.document for place in prefilled.place(texts)]
    _average(prefilled, names, MIXED)
    _compress(prefilled, names, COMPRESSED, RAW)
    _compress(prefilled, names, COMPRESSED, AVERAGED)
    _compress(prefilled, names, CODED, RAW)
    question = "Which of these statements can raise an exception?"

    def run(candidate: Blended | None) -> Callable[[], float]:
        def once() -> float:
            answer = ask(
                question,
                documents=[Cached(name, candidate.variant) for name in names] if candidate else names,
                model=model,
                store=store,
                options=BlendOptions(candidate.share, candidate.policy) if candidate else BlendOptions(),
                cached=candidate is not None,
                max_tokens=1,
            )
            return answer.first_token_seconds

        return once

    compared = [
        Blended("none", 0.0),
        Blended("cacheblend", USUAL),
        Blended("prophet", USUAL),
        *(Blended("drift", share, AVERAGED) for share in SHARES),
        Blended("drift", USUAL, averaged_name(COMPRESSED)),
        Blended("drift", USUAL, CODED),
    ]
    runs = {FULL: run(None), **{candidate.name: run(candidate) for candidate in compared}}
    return {"tokens": tokens, "repeats": repeats, "seconds": interleaved(runs, repeats)}


def _placed(stores: Mapping[str, Prefilled], sets: Sequence[BlendSet]) -> Names:
    documents = [document for one in sets for document in one.documents]
    names = {}
    for choice, prefilled in stores.items():
        places = iter(prefilled.place(documents))
        names[choice] = {one.name: [next(places).document for _ in one.documents] for one in sets}
    return names


def _average(prefilled: Prefilled, names: Sequence[str], choice: str) -> None:
    lines = Lines()
    make_averaged(
        prefilled.store,
        prefilled.model,
        names,
        neighbours=NEIGHBOURS,
        choice=choice,
        on_progress=lambda r: lines("averaged", r.tokens, r.tokens_total),
    )


def _compress(prefilled: Prefilled, names: Sequence[str], recipe: str, source: str) -> None:
    lines = Lines()
    report = kvtool.compress(
        prefilled.store,
        names,
        recipe=recipe,
        source=source,
        model=prefilled.model,
        on_progress=lambda r: lines(f"{source} as {recipe}", r.segments_done, r.segments_total),
    )
    if report.problems:
        raise report.problems[0]


def _some(number: int, one: BlendSet) -> tuple[BlendQuestion, ...]:
    """Of a set's questions a multi-hop one, and one in prose: of the one sort in one set, of the other in the next."""
    hops = [question for question in one.questions if question.kind == "hop"]
    prose = [question for question in one.questions if question.kind == "prose"]
    return hops[0], prose[number % len(prose)]


def _kept(bench: Bench, one: BlendSet, compared: Sequence[Blended]) -> dict[str, Any]:
    """What was measured of a set, now or before."""
    what = digest_json([bench.model.fingerprint, asdict(one)])
    path = FOLDER / f"{one.name}-{what[:12]}.json"
    there: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"candidates": {}}
    if missing := [candidate for candidate in compared if candidate.name not in there["candidates"]]:
        measured = bench.measure(one, missing)
        there = {**measured, "candidates": {**there["candidates"], **measured["candidates"]}}
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(there))
    return there


def _nbytes(prefilled: Prefilled, names: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Bytes of each variant, of all documents that have an averaged one."""
    variants = (RAW, AVERAGED, COMPRESSED, averaged_name(COMPRESSED))
    every = [name for own in names.values() for name in own[1:]]
    return {variant: sum(prefilled.store.size(name, variant) for name in every) for variant in variants}


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--one-source", type=int, default=8, help="sets of documents of one source")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--timed", type=int, nargs="*", default=[4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--measured", action="store_true", help="measure no further sets: write what there is"
    )
    parser.add_argument("--backwards", action="store_true", help="as a second process: measure sets only")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args(argv)
    model = kvtool.load_model()
    stores = {
        RANDOM: Prefilled(model),
        **{choice: Prefilled(model, FOLDER / choice) for choice in (SIMILAR, MIXED)},
    }
    mixed, others = blend_sets(model, arguments.sets), one_source_sets(model, arguments.one_source)
    sets = [replace(one, questions=_some(n, one)) for n, one in enumerate([*mixed, *others])]
    names = _placed(stores, sets)
    if not arguments.backwards:
        stores[RANDOM].calibrate(COMPRESSED, CALIBRATION_TOKENS)
        for choice, prefilled in stores.items():
            # The first of each set is taken from its own cache.
            _average(prefilled, [name for own in names[choice].values() for name in own[1:]], choice)
        for source, first in ((RAW, 0), (AVERAGED, 1)):
            every = [name for one in mixed for name in names[RANDOM][one.name][first:]]
            _compress(stores[RANDOM], every, COMPRESSED, source)
    bench, lines = Bench(stores, names), Lines()
    compared = {
        one.name: candidates(arguments.shares) if n < len(mixed) else usual_candidates()
        for n, one in enumerate(sets)
    }
    records = {}
    for n, one in enumerate(reversed(sets) if arguments.backwards else sets):
        records[one.name] = _kept(bench, one, [] if arguments.measured else compared[one.name])
        lines("measured", n + 1, len(sets))
    if arguments.backwards:
        return
    mixed_names = {one.name: names[RANDOM][one.name] for one in mixed}
    found: dict[str, Any] = {
        "machine": machine(),
        "model": model.name,
        "sets": {name: records[name] for name in mixed_names},
        "one_source": {one.name: records[one.name] for one in others},
        "candidates": [
            {"name": c.name, **asdict(c), "method": c.method, "source": c.source}
            for c in candidates(arguments.shares)
            if any(c.name in one["candidates"] for one in records.values())
        ],
        "nbytes": _nbytes(stores[RANDOM], mixed_names),
        "prefill": prefill_cost(model, arguments.repeats),
        "times": [timed(stores[RANDOM], tokens, arguments.repeats) for tokens in arguments.timed],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "blend.json").write_text(json.dumps(found))
    found["command"] = command("blend", argv)
    page = body(found)
    print(page)
    if arguments.write:
        arguments.write.write_text(replaced(arguments.write.read_text(), "blend", found["model"], page))
