"""Several cached segments in one prompt, some of their tokens computed anew in the place where they stand now."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from kvtool.artifact.load import load_cache
from kvtool.blending.cache import BlendedCache
from kvtool.blending.drift import Drift
from kvtool.blending.layer_loader import Loading, Upload, empty_cache
from kvtool.blending.layout import Layout, Part, lay_out
from kvtool.blending.policies import DEFAULT, Policy, policy_of
from kvtool.blending.policy_inputs import Known
from kvtool.digest import digest_token_ids
from kvtool.engines import transformers as engine
from kvtool.engines.attention.parallel_encoding import not_plain
from kvtool.engines.cache import ROOM, DocumentCache
from kvtool.engines.recompute import run_again
from kvtool.engines.rope import Turned
from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import Prefix, prefix_again, question_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW
from kvtool.system.trace import Trace

RECOMPUTE = 0.15
"""The share of tokens that is recomputed where nothing else is asked for, as in the CacheBlend paper."""

STEP_TOKENS = 128
"""Recomputed tokens of a pass, at least: for fewer, reading the model's weights costs more than computing with them."""


def blend(
    store: Store,
    names: str | Part | Iterable[Part],
    model: Model,
    *,
    recompute: float = RECOMPUTE,
    policy: str = DEFAULT,
    question: str | Sequence[str] | None = None,
    variant: str = RAW,
    between: str = "",
    trace: Trace | None = None,
) -> BlendedCache:
    """A transformers cache of documents one behind the other, ready for ``model``; ``token_ids`` is what it stands for.

    ``names`` are documents of ``store``, in any order and as often as wanted: names, or ``Cached`` for one of a
    document's segments or variants, or ``Text`` for words that are put between documents. ``variant`` is that of documents
    that name none, and ``between`` a text put between any two of them.

    ``recompute`` is the share of the documents' tokens that the model runs again behind what stands before them now, the
    ones that ``policy`` gives the highest scores; what is right for its place already is not run again, and text without
    a cache always is. With 1, everything is: the result is that of a full prefill, to the bit. A document alone is its own
    cache. ``question`` is what is going to be asked, or several of them, which some policies want to know. Where
    ``parallel`` of the cache is set, as by the policy ``ape``, ``generate`` is called under
    ``kvtool.blending.reading(model, cache)``; without it the model's attention is its plain one.

    Raises ``UsageError`` for a value that makes no sense or for more tokens than the model's context, ``StoreError`` for
    what the store has not, ``MismatchError`` for segments of another model or of different prefixes, ``ModelError`` for
    a model whose keys cannot be moved or, where the policy adapts attention, whose attention is not plain; all before the
    model runs over a document. ``ArtifactError`` for a broken file.
    """
    how = How(recompute, policy)
    layout = lay_out(store, names, model, variant=variant, between=between)
    prefix = shared_prefix(layout, store, model)
    questions = [question] if isinstance(question, str) else question or []
    asked = [question_tokens(model, prefix, each) for each in questions]
    return assemble(layout, model, how, asked, trace)


@dataclass(frozen=True)
class How:
    """The share of tokens that are recomputed, and which they are; ``blend`` says more.

    Raises ``UsageError`` for a share outside of [0, 1] and for an unknown policy.
    """

    recompute: float = RECOMPUTE
    policy: str = DEFAULT

    def __post_init__(self) -> None:
        known = policy_of(self.policy)
        if not (isinstance(self.recompute, (int, float)) and 0 <= self.recompute <= 1):
            raise UsageError(
                f"recompute {self.recompute!r}", "expected a share of the documents' tokens, from 0 to 1"
            )
        if known.share is not None:
            object.__setattr__(self, "recompute", known.share)


def assemble(
    layout: Layout, model: Model, how: How, asked: Sequence[Sequence[int]] = (), trace: Trace | None = None
) -> BlendedCache:
    """The cache that ``layout`` describes; ``asked`` are each question's tokens. ``blend`` says more."""
    trace = trace or Trace()
    if layout.is_alone:
        return _load(model, layout, trace)
    if how.recompute == 1:
        return _prefill(model, layout, trace)
    policy = policy_of(how.policy)
    if policy.asks and how.recompute and not asked:
        raise UsageError(
            f"policy {how.policy!r}",
            "needs the question that is going to be asked",
            "give question=, or another policy",
        )
    turned = _turned(model, layout)
    if policy.parallel:
        if not model.attends_plainly:
            raise not_plain(model)
        layout = layout.side_by_side()
    budget = min(
        math.ceil(how.recompute * layout.n_document_tokens), int((layout.cached & ~layout.exact).sum())
    )
    upload = Upload.for_model(model)
    cache = empty_cache(layout, room=max(map(len, asked), default=0), pinned=upload is not None)
    cache.how = {**asdict(how), "asked": [digest_token_ids(ids) for ids in asked]}
    cache.parallel = policy.parallel and replace(policy.parallel, prefix_tokens=layout.prefix_tokens)
    with Loading(layout, turned, cache, trace, upload) as loading:
        known = Known(model, layout, cache, loading, budget, [torch.tensor(ids) for ids in asked], trace)
        tokens = _choose(known, policy)
        for some in _steps(layout, tokens):
            drift = Drift(layout, turned, cache, some) if policy.drift else None
            _recompute(model, cache, some, loading, trace, drift)
        cache.recomputed = len(tokens)
        loading.wait_for_all()
    return cache


def shared_prefix(layout: Layout, store: Store, model: Model) -> Prefix:
    """The prefix of ``layout``, which says how a question ends."""
    return prefix_again(model, dict(store[layout.segments[-1].document].prefix["origin"]))


def _turned(model: Model, layout: Layout) -> Turned:
    found = model.turned
    if found is None:
        raise ModelError(
            model.name,
            (
                f"how {model.config.model_type} rotates its keys is not known, so that they cannot be "
                "moved to another place"
            ),
            "blend with recompute 1, which computes everything",
        )
    if found.up_to is not None and len(layout.token_ids) > found.up_to:
        raise UsageError(
            "the documents together",
            f"are {len(layout.token_ids):,} tokens long, and from {found.up_to:,} on {model.name} rotates its keys otherwise",
            "blend fewer, or with recompute 1",
        )
    return found


def _choose(known: Known, policy: Policy) -> Tensor:
    """Indices [S] of the tokens to run again, ascending: those without a cache, and those that score highest."""
    tokens = (~known.layout.cached).nonzero()[:, 0]
    if not known.budget:
        return tokens
    scores = torch.where(known.candidates, policy.score(known), -torch.inf)
    return torch.cat([tokens, scores.topk(known.budget).indices]).sort().values


def _steps(layout: Layout, tokens: Tensor) -> Iterator[Tensor]:
    """``tokens`` in runs that are computed one after the other, each of whole segments.

    In one pass all of them would pay for the keys that only the last can see.
    """
    ends = torch.tensor([segment.stop for segment in layout.segments])
    start = 0
    for cut in torch.searchsorted(tokens, ends).tolist():
        if cut - start >= STEP_TOKENS and len(tokens) - cut >= STEP_TOKENS:
            yield tokens[start:cut]
            start = cut
    if start < len(tokens):
        yield tokens[start:]


def _recompute(
    model: Model, cache: DocumentCache, tokens: Tensor, loading: Loading, trace: Trace, drift: Drift | None
) -> None:
    marks = [time.perf_counter()]

    def before(layer: int) -> None:
        if layer:
            trace.add("recompute", f"{len(tokens)} tokens in layer {layer - 1}", marks[-1])
        loading.wait(layer)
        marks.append(time.perf_counter())

    seen = int(tokens[-1]) + 1
    run_again(model, cache, cache.token_ids, tokens, n_keys=seen, before=before, changed=drift)
    trace.add("recompute", f"{len(tokens)} tokens in layer {len(cache.layers) - 1}", marks[-1])


def _load(model: Model, layout: Layout, trace: Trace) -> BlendedCache:
    """A document alone is its own cache, compressed or not."""
    parts = [segment.artifact for segment in layout.segments]
    with trace.span("read", ", ".join(layout.documents)):
        loaded = load_cache(parts, model)
    cache = BlendedCache(layout, len(loaded.layers))
    cache.layers = loaded.layers
    if not all(part.is_raw and part.is_exact for part in parts):
        cache.how = {"policy": "none"}
    return cache


def _prefill(model: Model, layout: Layout, trace: Trace) -> BlendedCache:
    """The documents as one prompt, in one pass: equal to the bit to what anyone else's would give."""
    cache = BlendedCache(layout, len(engine.windows(model)), capacity=len(layout.token_ids) + ROOM)
    with trace.span("recompute", f"all {len(layout.token_ids)} tokens"):
        engine.feed(model, layout.token_ids.tolist(), cache, step=len(layout.token_ids))
    cache.recomputed = len(layout.token_ids)
    return cache
