"""What blending costs: policies and shares against full prefill, over sets of documents whose questions need two of them.

python -m benchmarks blend [--sets 40] [--shares 0.05 0.1 …] [--timed 4096] [--repeats 5] [--write docs/results/blending.md]

Each set is blended by every candidate and asked all its questions: KL to full prefill over the tokens of the answer, whether
the answer is the same, and whether numbers are found whose name stands in another document. What was measured of a set
is kept in build/blend, so that an interrupted run goes on; a second process, started with --backwards, begins at the other
end. Times are ratios of medians over interleaved rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import Lines, machine
from benchmarks.common.timing import interleaved
from benchmarks.corpora.blend_sets import SETS, BlendQuestion, BlendSet, blend_sets
from benchmarks.corpora.help_text import text_of
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.texts import Text, for_calibration
from benchmarks.pages.blend_page import body
from benchmarks.pages.tables import replaced
from kvtool.ask import ask
from kvtool.blending.averaged import NEIGHBOURS, make_averaged
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached
from kvtool.calibration.lookup import MissingCalibration, finder
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.digest import digest_json
from kvtool.engines.batching.generate_many import generate_many, logits_after
from kvtool.engines.cache import DocumentCache
from kvtool.measurement.distortion import distortion
from kvtool.model.chat_template import SEPARATOR, conversation_tokens, document_tokens
from kvtool.store.manifest import AVERAGED, RAW, averaged_name

FOLDER = Path(__file__).resolve().parents[2] / "build" / "blend"

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
POLICIES = ("even", "legolink", "cacheblend", "cacheblend-gradual", "prophet")
"""From caches of documents alone, "drift" is "prophet"."""
USUAL = 0.15
COMPRESSED = "klt"

CODED = "cachegen"
"""Timed too: it is decoded layer by layer, beside the model."""

CALIBRATION_TOKENS = 3072
"""Of each of the texts that klt learns from, where the store has no calibration yet."""

ANSWER_TOKENS = 24
"""Of the answer that full prefill gives to a question in prose."""

TIMED_DOCUMENTS = 4


@dataclass(frozen=True)
class Blended:
    """One way to blend. ``variant`` is that of every document but the first, which stands where it was prefilled."""

    policy: str
    share: float
    variant: str = RAW
    first: str = RAW

    @property
    def name(self) -> str:
        return f"{self.policy} {self.share:.0%} {self.variant}"

    def parts(self, names: Sequence[str]) -> list[Cached]:
        return [Cached(name, self.variant if n else self.first) for n, name in enumerate(names)]


def candidates(shares: Sequence[float] = SHARES) -> list[Blended]:
    """Every policy at every share from the caches of documents alone; ours from those made for blending too, and compressed."""
    found = [Blended("none", 0.0), Blended("none", 0.0, AVERAGED), Blended("ape", 0.0)]
    for policy in POLICIES:
        found += [Blended(policy, share) for share in shares]
    found += [Blended("drift", share, AVERAGED) for share in shares]
    twin = averaged_name(COMPRESSED)
    return [
        *found,
        Blended("cacheblend-keys", USUAL),
        Blended("cacheblend", USUAL, AVERAGED),
        Blended("prophet", USUAL, AVERAGED),
        Blended("drift", USUAL, COMPRESSED, COMPRESSED),
        Blended("drift", USUAL, twin, COMPRESSED),
    ]


@dataclass(frozen=True)
class Asked:
    """A prompt behind the documents, the tokens that are expected behind it, and which question it belongs to."""

    question: int
    text: str
    token_ids: list[int]
    targets: list[int]
    has_answer: bool


class Bench:
    def __init__(self, prefilled: Prefilled, names: dict[str, list[str]]) -> None:
        self.prefilled, self.names = prefilled, names
        self.model, self.store = prefilled.model, prefilled.store

    def measure(self, one: BlendSet, compared: Sequence[Blended]) -> dict[str, Any]:
        """A record for each candidate: lists by question, in the order of ``one.questions``."""
        names = self.names[one.name]
        full = self._blend(Blended("all", 1.0), names, None)
        asked = list(self._asked(one, full))
        expected = self._follow(full, asked)
        records = {"full prefill": self._record(one, asked, expected, expected)}
        for candidate in compared:
            said = [torch.empty(0)] * len(asked)
            # What one question looks at is nothing to the next; what no question is asked of is blended once.
            asks = candidate.policy in ("prophet", "drift")
            for question in dict.fromkeys(a.text for a in asked) if asks else [None]:
                cache = self._blend(candidate, names, question)
                some = [n for n, a in enumerate(asked) if question in (None, a.text)]
                for n, logits in zip(some, self._follow(cache, [asked[n] for n in some]), strict=True):
                    said[n] = logits
            records[candidate.name] = self._record(one, asked, expected, said)
        return {"documents": len(names), "tokens": len(full.token_ids), "candidates": records}

    def _blend(self, candidate: Blended, names: Sequence[str], question: str | None) -> DocumentCache:
        return kvtool.blend(
            self.store,
            candidate.parts(names),
            self.model,
            recompute=candidate.share,
            policy=candidate.policy,
            question=question,
            separator=SEPARATOR,
        )

    def _asked(self, one: BlendSet, full: DocumentCache) -> Iterator[Asked]:
        """To each step of a multi-hop question its answer is expected, to prose what full prefill says."""
        prefix = self.prefilled.prefix
        for n, question in enumerate(one.questions):
            for step in question.steps:
                ids = conversation_tokens(self.model, prefix, (), step.text, step.lead)
                if step.answers:
                    targets = document_tokens(self.model, f" {step.answers[0]}")
                else:
                    (targets,) = generate_many(self.model, full, [ids], [ANSWER_TOKENS])
                yield Asked(n, step.text, ids, targets, bool(step.answers))

    def _follow(self, cache: DocumentCache, asked: Sequence[Asked]) -> list[torch.Tensor]:
        """Logits at the tokens before each target, [targets, V] for each prompt."""
        return [
            logits_after(self.model, cache, [*a.token_ids, *a.targets[:-1]])[-len(a.targets) :]
            if a.targets
            else torch.empty(0)
            for a in asked
        ]

    def _record(
        self,
        one: BlendSet,
        asked: Sequence[Asked],
        expected: Sequence[torch.Tensor],
        said: Sequence[torch.Tensor],
    ) -> dict[str, Any]:
        """Of a question: KL in nats per token, whether all likeliest tokens are those of full prefill, and, where there is
        an answer, whether they are that answer."""
        found: dict[str, list[Any]] = {"kl": [], "same": [], "right": []}
        for n, question in enumerate(one.questions):
            own = [i for i, a in enumerate(asked) if a.question == n and a.targets]
            compared = [distortion(expected[i], said[i], asked[i].targets) for i in own]
            kl = [value for distorted in compared for value in distorted.kl]
            found["kl"].append(sum(kl) / max(1, len(kl)))
            found["same"].append(float(all(all(distorted.top1) for distorted in compared)))
            if question.kind == "hop":
                right = all(said[i].argmax(-1).tolist() == asked[i].targets for i in own)
                found["right"].append(float(right))
        return {**found, "kinds": [question.kind for question in one.questions]}


def timed(prefilled: Prefilled, tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first token over four documents of ``tokens`` in all; medians, rounds interleaved."""
    model, store = prefilled.model, prefilled.store
    size = tokens // TIMED_DOCUMENTS
    texts = [
        Text("timed", "help", f"timed-{tokens}-{n}.txt", text_of(model, size, skip=n * size))
        for n in range(TIMED_DOCUMENTS)
    ]
    names = [place.document for place in prefilled.place(texts)]
    _prepare(prefilled, names)
    _compress(prefilled, names, CODED, RAW)
    question = "Which of these statements can raise an exception?"

    def run(candidate: Blended | None) -> Callable[[], float]:
        def once() -> float:
            answer = ask(
                question,
                documents=candidate.parts(names) if candidate else names,
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
        Blended("drift", USUAL, averaged_name(COMPRESSED), COMPRESSED),
        Blended("drift", USUAL, CODED, CODED),
    ]
    runs = {"full prefill": run(None), **{candidate.name: run(candidate) for candidate in compared}}
    return {"tokens": tokens, "repeats": repeats, "seconds": interleaved(runs, repeats)}


def _placed(prefilled: Prefilled, sets: Sequence[BlendSet]) -> dict[str, list[str]]:
    """Each set's documents, by their names in the store."""
    places = iter(prefilled.place([document for one in sets for document in one.documents]))
    return {one.name: [next(places).document for _ in one.documents] for one in sets}


def _prepare(prefilled: Prefilled, names: Sequence[str]) -> None:
    """Beside the raw caches those for blending, and both compressed."""
    lines = Lines()
    make_averaged(
        prefilled.store,
        prefilled.model,
        names,
        neighbours=NEIGHBOURS,
        on_progress=lambda r: lines("read behind others", r.tokens, r.tokens_total),
    )
    for of in (RAW, AVERAGED):
        _compress(prefilled, names, COMPRESSED, of)


def _compress(prefilled: Prefilled, names: Sequence[str], recipe: str, of: str) -> None:
    lines = Lines()
    report = kvtool.compress(
        prefilled.store,
        names,
        recipe=recipe,
        of=of,
        model=prefilled.model,
        on_progress=lambda r: lines(f"{of} as {recipe}", r.segments_done, r.segments_total),
    )
    if report.problems:
        raise report.problems[0]


def _calibrate(prefilled: Prefilled) -> None:
    """From texts that no set has anything of, once."""
    try:
        finder(prefilled.store, list(prefilled.store))(find_recipe(COMPRESSED))
    except MissingCalibration:
        texts = [text.text for text in for_calibration(prefilled.model, CALIBRATION_TOKENS)]
        kvtool.calibrate(prefilled.store, model=prefilled.model, texts=texts)


def _some(number: int, one: BlendSet) -> tuple[BlendQuestion, ...]:
    """Of a set's questions two multi-hop ones, and one in prose: of the one sort in one set, of the other in the next."""
    hops = [question for question in one.questions if question.kind == "hop"]
    prose = [question for question in one.questions if question.kind == "prose"]
    return (*hops[:2], prose[number % len(prose)])


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
    """Bytes of each variant, all documents together."""
    variants = (RAW, AVERAGED, COMPRESSED, averaged_name(COMPRESSED))
    every = [name for own in names.values() for name in own]
    return {variant: sum(prefilled.store.size(name, variant) for name in every) for variant in variants}


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
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
    prefilled = Prefilled(model)
    sets = [replace(one, questions=_some(n, one)) for n, one in enumerate(blend_sets(model, arguments.sets))]
    names = _placed(prefilled, sets)
    if not arguments.backwards:
        _calibrate(prefilled)
        _prepare(prefilled, [name for own in names.values() for name in own])
    bench, lines, compared = Bench(prefilled, names), Lines(), candidates(arguments.shares)
    records = {}
    for n, one in enumerate(reversed(sets) if arguments.backwards else sets):
        records[one.name] = _kept(bench, one, [] if arguments.measured else compared)
        lines("measured", n + 1, len(sets))
    if arguments.backwards:
        return
    found: dict[str, Any] = {
        "machine": machine(),
        "model": model.name,
        "sets": {one.name: records[one.name] for one in sets},
        "candidates": [
            {"name": c.name, **asdict(c)}
            for c in compared
            if any(c.name in one["candidates"] for one in records.values())
        ],
        "nbytes": _nbytes(prefilled, names),
        "times": [timed(prefilled, tokens, arguments.repeats) for tokens in arguments.timed],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "blend.json").write_text(json.dumps(found))
    found["command"] = command("blend", argv)
    page = body(found)
    print(page)
    if arguments.write:
        arguments.write.write_text(replaced(arguments.write.read_text(), "blend", found["model"], page))
