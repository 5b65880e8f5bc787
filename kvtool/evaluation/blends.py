"""What blending costs: a document is asked after another one, over their blend and over a full prefill of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvtool.blending.blend import BlendOptions, assemble, shared_prefix
from kvtool.blending.layout import Cached, Layout, lay_out
from kvtool.blending.policy_inputs import USUAL_QUESTION
from kvtool.counts import counted
from kvtool.digest import digest_token_ids
from kvtool.engines.batching.generate_many import generate_many, logits_after
from kvtool.engines.cache import DocumentCache
from kvtool.errors import UsageError
from kvtool.evaluation.questions import read_questions
from kvtool.evaluation.run import OnProgress, Progress
from kvtool.evaluation.summary import blend_summary
from kvtool.measurement import journal
from kvtool.measurement.contexts import choose_segments
from kvtool.measurement.distortion import distortion
from kvtool.measurement.scope import Scope
from kvtool.model.chat_template import SEPARATOR, document_tokens, question_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW
from kvtool.store.segments import SegmentRef

FULL = BlendOptions(recompute=1)


@dataclass(frozen=True)
class Blend:
    """Documents in their ``variant``, blended as ``options`` say. ``name`` is what reports call it."""

    name: str
    variant: str
    options: BlendOptions


@dataclass
class Pair:
    """Two segments in one prompt, and what is asked about the second."""

    store: Store
    model: Model
    first: SegmentRef
    second: SegmentRef
    questions: list[str] = field(default_factory=list)

    def layout(self, variant: str) -> Layout:
        """Their places, as ``kvtool ask`` lays them out."""
        parts = [Cached(ref.document, segment=ref.segment) for ref in (self.first, self.second)]
        return lay_out(self.store, parts, self.model, variant=variant, separator=SEPARATOR)

    @property
    def n_tokens(self) -> int:
        return sum(ref.n_tokens(self.store) for ref in (self.first, self.second))

    @property
    def cost(self) -> int:
        """Tokens that are loaded or run for one blend. Progress is counted in them."""
        return len(self.questions) * self.n_tokens

    def fits(self, scope: Scope) -> bool:
        """Whether the model's context has room for both, the questions and their answers."""
        prefix = self.store.prefix(self.second.document, self.model)
        asked = max(len(question_tokens(self.model, prefix, question)) for question in self.questions)
        gap = len(document_tokens(self.model, SEPARATOR))
        return len(prefix.token_ids) + self.n_tokens + gap + asked + scope.answer_tokens < self.model.context

    @cached_property
    def full(self) -> DocumentCache:
        """The cache of a full prefill of both."""
        return assemble(self.layout(RAW), self.model, FULL)

    def prompts(self, layout: Layout) -> list[list[int]]:
        prefix = shared_prefix(layout, self.store, self.model)
        return [question_tokens(self.model, prefix, question) for question in self.questions]


def measure_blends(
    store: Store,
    names: Sequence[str],
    model: Model,
    blends: Sequence[Blend],
    questions: str | Path | None,
    scope: Scope,
    on_progress: OnProgress = lambda _: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """A summary of each of ``blends``, as JSON, and notes for readers.

    Each document that is measured is asked after the one before it in ``names``. ``questions`` is a file of the user's own; of
    a conversation its first turn is asked. Without one, the question is what the documents are about. Raises ``UsageError``
    where no two documents fit the model's context, and what ``kvtool.blend`` raises.
    """
    pairs, notes = _pairs(store, names, model, questions, scope)
    progress = Progress("blends", total=len(blends) * sum(pair.cost for pair in pairs))
    records: dict[str, list[dict[str, Any]]] = {blend.name: [] for blend in blends}
    for pair in pairs:
        for blend in blends:
            records[blend.name] += _measure(pair, blend, scope)
            progress.done += pair.cost
            on_progress(progress)
        # The caches of a pair are not kept beside those of the next.
        pair.__dict__.pop("full", None)
    summaries = [
        blend_summary(
            blend.name,
            {"variant": blend.variant, **asdict(blend.options)},
            records[blend.name],
            asks=questions is not None,
        )
        for blend in blends
    ]
    return summaries, notes


def _pairs(
    store: Store, names: Sequence[str], model: Model, questions: str | Path | None, scope: Scope
) -> tuple[list[Pair], list[str]]:
    if len(names) < 2:
        raise UsageError(
            ", ".join(names) or "a blend", "is no blend alone", "measure two documents, or leave the gate out"
        )
    by_second: dict[SegmentRef, list[str]] = {}
    if questions is None:
        by_second = {ref: [USUAL_QUESTION] for ref in choose_segments(store, names, scope)}
    else:
        for question in read_questions(Path(questions), names):
            ref = SegmentRef(question.document, question.segment or 0)
            by_second.setdefault(ref, []).append(question.turns[0])
    pairs = [Pair(store, model, _before(store, names, ref), ref, asked) for ref, asked in by_second.items()]
    fitting = [pair for pair in pairs if pair.fits(scope)]
    if not fitting:
        reason = (
            f"no two of them that follow one another fit {model.name}'s context of {model.context:,} tokens"
        )
        raise UsageError("blends", reason, "prefill with a smaller segment_tokens, or leave the gate out")
    left_out = len(pairs) - len(fitting)
    if not left_out:
        return fitting, []
    return fitting, [f"{counted(left_out, 'blend')} too long for the model's context, and left out."]


def _before(store: Store, names: Sequence[str], ref: SegmentRef) -> SegmentRef:
    """The last segment of the document before; before the first comes the last."""
    name = names[names.index(ref.document) - 1]
    return SegmentRef(name, len(store[name].segments) - 1)


def _measure(pair: Pair, blend: Blend, scope: Scope) -> list[dict[str, Any]]:
    """A record for each question, as JSON: ``TOKEN_METRICS`` of each token of the full prefill's answer, and both answers."""
    layout = pair.layout(blend.variant)
    return [
        _record(pair, blend, layout, question, prompt, scope.answer_tokens)
        for question, prompt in zip(pair.questions, pair.prompts(layout), strict=True)
    ]


def _record(
    pair: Pair, blend: Blend, layout: Layout, question: str, prompt: Sequence[int], most: int
) -> dict[str, Any]:
    model = pair.model
    key = journal.key(
        "blended",
        [model.fingerprint, model.device_map],
        [segment.artifact.digest for segment in layout.segments],
        [asdict(blend.options), digest_token_ids(prompt), most],
    )
    record: dict[str, Any] | None = journal.recall(key)
    if record is None:
        (expected,) = generate_many(model, pair.full, [prompt], [most])
        # What one question needs is nothing to the next, so each has a blend of its own.
        cache = assemble(layout, model, blend.options, [prompt])
        (answer,) = generate_many(model, cache, [prompt], [most])
        fed = [*prompt, *expected]
        # The token after the last one counts too: an answer of no tokens has one.
        before, after = (logits_after(model, one, fed)[len(prompt) - 1 :] for one in (pair.full, cache))
        record = asdict(distortion(before, after, before.argmax(-1).tolist()))
        texts = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in (expected, answer))
        record["raw"], record["answer"] = texts
        journal.remember(key, record)
    return {"document": pair.second.document, "question": question, **record}
